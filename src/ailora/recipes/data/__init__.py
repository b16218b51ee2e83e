"""Read, validate and tokenize the rows of data files."""
