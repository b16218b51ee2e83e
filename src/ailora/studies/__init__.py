"""Comparisons of initializations: methods x tasks x learning rates x seeds."""
