"""Base weights as plain matrices (out, in), read from any format."""
