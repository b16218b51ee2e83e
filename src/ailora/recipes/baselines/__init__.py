"""Baseline methods: PEFT's own inits, and functions written by users."""
