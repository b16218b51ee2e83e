"""Rows of data files: read, checked, tokenized."""
