"""Inference with a trained run: evaluate, predict, generate."""
