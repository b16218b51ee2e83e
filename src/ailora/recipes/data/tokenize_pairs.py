"""Tokenize texts or text pairs for classification."""

from __future__ import annotations

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ailora.errors import InputError
from ailora.recipes.data.classification_rows import Examples


def validate_max_length(tokenizer: PreTrainedTokenizerBase, max_length: int, *, pairs: bool) -> None:
    """Validate that a row of `max_length` tokens has room for text.

    Args:
        tokenizer: Tokenizer of the model.
        max_length: Maximum number of tokens per row; longer rows are truncated.
        pairs: Whether rows are text pairs.

    Raises:
        InputError: The special tokens leave less than one token for each text.
    """
    # Tokenizers silently skip truncation if the special tokens alone exceed max_length.
    num_special, num_texts = tokenizer.num_special_tokens_to_add(pair=pairs), 2 if pairs else 1
    if max_length < num_special + num_texts:
        raise InputError(
            f"data.max_length must be at least {num_special + num_texts}, got {max_length}: the tokenizer adds "
            f"{num_special} special tokens, and no room for text would be left"
        )


def tokenize(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Tokenize texts or text pairs.

    Args:
        examples: Rows with a text or a text pair.
        tokenizer: Tokenizer of the model.
        max_length: Maximum number of tokens per row; longer rows are truncated.

    Returns:
        The tokenizer's outputs (`input_ids`, `attention_mask`, ...) for each row, not padded.
    """
    # Convert a tuple of one or two texts per row to a list of first texts, and a list of second texts if there are any.
    first, *second = [list(column) for column in zip(*examples.texts, strict=True)]
    encoded = tokenizer(first, second[0] if second else None, truncation=True, max_length=max_length)
    return Dataset.from_dict(dict(encoded))
