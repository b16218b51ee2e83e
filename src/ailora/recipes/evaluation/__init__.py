"""Evaluation: metrics, perplexity, generated texts and their scores."""
