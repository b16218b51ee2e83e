"""Run configurations: schemas, loading and validation."""
