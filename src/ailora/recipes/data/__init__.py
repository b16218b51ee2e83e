"""Read rows of data files, validate and tokenize them."""
