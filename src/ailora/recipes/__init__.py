"""Recipes: train, evaluate and save a model as configured, with a module for each kind of task."""
