"""Layer replication: a model built of ranges of its own layers, which share their weights (PEFT's option)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from typing import Any

from peft.tuners.tuners_utils import replicate_layers
from torch import nn

from ailora.errors import InputError, ModelError

Layers = tuple[tuple[int, int], ...]


def parse_layers(layers: Sequence[Sequence[int]]) -> Layers:
    """Ranges of layers, as PEFT takes them: `[[0, 4], [2, 5]]` are the layers 0 1 2 3 2 3 4.

    Raises:
        InputError: no list of ranges [start, stop] of whole numbers, 0 <= start < stop.
    """
    try:
        parsed = tuple((start, stop) for start, stop in layers)
    except (TypeError, ValueError):
        parsed = ()
    if not parsed or not all(type(a) is int and type(b) is int and 0 <= a < b for a, b in parsed):
        raise InputError(f"layer_replication is a list of ranges [start, stop] of layers, not {layers!r}")
    return parsed


def replicated(model: nn.Module, layers: Layers) -> nn.Module:
    """The model that PEFT will build. It shares every tensor with `model`, which is left as it is.

    Raises:
        InputError: PEFT does not know where the layers of the model are, or the model has fewer.
        ModelError: the configuration lists the kind of every layer, which PEFT leaves as it is, so that layers would
            run as another kind or not at all; the tensors cannot be shared by a copy; bitsandbytes holds them in 8
            bits: the first forward pass takes the scales away from a shared weight, so that the second layer computes
            nonsense, with stock PEFT too.
    """
    if any(type(parameter).__name__ == "Int8Params" for parameter in model.parameters()):
        raise ModelError("layer_replication: 8-bit weights of bitsandbytes cannot be shared by layers; use 4 bits")
    configs: dict[int, Any] = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    for config in configs.values():
        listed = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
        if listed:
            raise ModelError(
                f"layer_replication: the configuration of {config.model_type} lists the kind of every layer "
                "(layer_types), which PEFT does not replicate"
            )
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    try:
        built = copy.deepcopy(model, shared)
    except RuntimeError as error:
        raise ModelError(f"layer_replication: the weights cannot be shared by a copy: {error}") from error
    try:
        replicate_layers(built, [list(pair) for pair in layers])  # type: ignore[misc]
    except (ValueError, IndexError) as error:
        raise InputError(f"layer_replication {[list(pair) for pair in layers]}: {error}") from error
    return built
