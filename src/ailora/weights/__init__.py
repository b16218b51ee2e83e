"""Base weights as plain matrices (out, in), whatever the storage in the layer."""
