"""Tokenize texts, and pairs of texts, for classification."""

from __future__ import annotations

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ailora.errors import InputError
from ailora.recipes.data.classification_rows import Examples


def validate_max_length(tokenizer: PreTrainedTokenizerBase, max_length: int, *, pairs: bool) -> None:
    """Validate that a row of `max_length` tokens has room for text.

    Args:
        tokenizer: tokenizer of the model.
        max_length: length that rows are truncated to, in tokens.
        pairs: whether rows are pairs of texts.

    Raises:
        InputError: Less than one token of every text fits beside the special tokens.
    """
    # A tokenizer whose special tokens alone exceed max_length does not truncate, and does not say so.
    special, texts = tokenizer.num_special_tokens_to_add(pair=pairs), 1 + pairs
    if max_length < special + texts:
        raise InputError(
            f"data.max_length must be at least {special + texts}, got {max_length}, which leaves no room for text: the "
            f"tokenizer adds {special} special tokens"
        )


def tokenize(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Tokenize texts or pairs of texts.

    Args:
        examples: rows of one text, or of two.
        tokenizer: tokenizer of the model.
        max_length: length that rows are truncated to, in tokens.

    Returns:
        The tokenizer's outputs (`input_ids`, `attention_mask`, ...) by row, not padded.
    """
    first, *second = [list(column) for column in zip(*examples.texts, strict=True)]
    encoded = tokenizer(first, second[0] if second else None, truncation=True, max_length=max_length)
    return Dataset.from_dict(dict(encoded))
