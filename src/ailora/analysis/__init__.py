"""Weights and runs as figures."""
