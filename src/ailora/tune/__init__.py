"""Search for the learning rate, roles, rank and init of a run within a budget."""
