"""From members and data to students: what commands and the Python API run."""
