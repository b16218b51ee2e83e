"""Evaluation: metrics, perplexity, generated texts and scores of these texts."""
