"""Learning rates by role and factor: parameter groups, and the curvature of the loss before training."""
