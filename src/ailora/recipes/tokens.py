"""Texts as the model takes them."""

from __future__ import annotations

from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from ailora.recipes.examples import Examples


def tokenize(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Token ids of one text or a pair per row, cut to `max_length` and not yet padded."""
    first, *second = [list(column) for column in zip(*examples.texts, strict=True)]
    encoded = tokenizer(first, second[0] if second else None, truncation=True, max_length=max_length)
    return Dataset.from_dict(dict(encoded))


def collator(tokenizer: PreTrainedTokenizerBase) -> DataCollatorWithPadding:
    """Pads the rows of a batch to the longest of them."""
    return DataCollatorWithPadding(tokenizer)
