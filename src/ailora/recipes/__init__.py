"""Runs from a configuration: one readable file per kind of task."""
