"""Recipes: from a configuration to a trained, evaluated and stored model, one file per kind of task."""
