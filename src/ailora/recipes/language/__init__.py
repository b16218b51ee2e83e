"""What the recipes of language models share: rows of text, their tokens, generation and its scores."""
