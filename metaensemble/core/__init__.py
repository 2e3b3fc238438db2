"""Config, errors, files, seeds and states: what everything else stands on."""
