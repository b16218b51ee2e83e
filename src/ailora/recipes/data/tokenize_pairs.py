"""Texts as the model takes them."""

from __future__ import annotations

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ailora.errors import InputError
from ailora.recipes.data.classification_rows import Examples


def validate_max_length(tokenizer: PreTrainedTokenizerBase, max_length: int, *, pairs: bool) -> None:
    """Refuse a length that leaves no room for a text: the tokenizer would then not cut at all, in silence.

    Raises:
        InputError: not one token of every text fits beside the special tokens.
    """
    special, texts = tokenizer.num_special_tokens_to_add(pair=pairs), 1 + pairs
    if max_length < special + texts:
        raise InputError(
            f"data.max_length {max_length} leaves no room for text: the tokenizer adds {special} special tokens; "
            f"expected at least {special + texts}"
        )


def tokenize(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Token ids of one text or a pair per row, cut to `max_length` and not yet padded."""
    first, *second = [list(column) for column in zip(*examples.texts, strict=True)]
    encoded = tokenizer(first, second[0] if second else None, truncation=True, max_length=max_length)
    return Dataset.from_dict(dict(encoded))
