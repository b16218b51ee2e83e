"""Inits and training methods that are not ours: PEFT's, and functions of the user."""
