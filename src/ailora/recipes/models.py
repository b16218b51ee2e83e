"""Pretrained models and tokenizers for a task."""

from __future__ import annotations

from typing import Any

from safetensors import SafetensorError
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ailora.checkpoints.models import model_path
from ailora.errors import InputError
from ailora.recipes.labels import Labels


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; one without a padding token pads with its end-of-text token.

    Raises:
        InputError: no such model.
    """
    path = model_path(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load the tokenizer of model {name!r}: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_classifier(path: str, labels: Labels, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A pretrained model with a head for the labels; the head is drawn from the global random state if it is new.

    Raises:
        InputError: no model of transformers at that path or hub id, or one without such a head.
    """
    meaning: dict[str, Any] = {"num_labels": labels.count}
    if labels.names is None:
        meaning["problem_type"] = "regression"
    else:
        meaning["id2label"] = dict(enumerate(labels.names))
        meaning["label2id"] = {name: i for i, name in enumerate(labels.names)}
    try:
        model = AutoModelForSequenceClassification.from_pretrained(path, **meaning)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"cannot load {path!r} for sequence classification: {error}") from error
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model
