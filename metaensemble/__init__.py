"""metaensemble."""
