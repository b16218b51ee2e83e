"""Base weights as plain (out, in) matrices, however a layer stores them."""
