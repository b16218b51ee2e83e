"""Recipes: train, evaluate and save a model from a configuration, with a file for each kind of task."""
