"""Configurations of runs: schemas, loading and validation."""
