"""Baselines: PEFT's own inits, and methods that are functions of the user."""
