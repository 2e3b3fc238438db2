"""weightformer."""
