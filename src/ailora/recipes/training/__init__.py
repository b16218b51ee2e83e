"""Training of every recipe: arguments, trainer, checkpoints, results."""
