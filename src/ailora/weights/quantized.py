"""Quantized weights: how the libraries store them, and how to read one as a matrix.

No library is imported before a model that it quantized is met.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ailora.errors import ModelError
from ailora.roles import weight_shape


@dataclass(frozen=True)
class Storage:
    """How a library keeps a quantized weight.

    Attributes:
        name: what messages call it.
        holds: whether a layer keeps its weight this way.
        read: returns the weight of a layer as a floating matrix (out, in).
    """

    name: str
    holds: Callable[[nn.Module], bool]
    read: Callable[[nn.Module], Tensor]


def find_storage(layer: nn.Module) -> Storage | None:
    """Return how a layer stores its quantized weight; None for a plain one."""
    return next((storage for storage in STORAGES if storage.holds(layer)), None)


def dequantize(layer: nn.Module, storage: Storage, module: str) -> Float[Tensor, "out in_"]:
    """Return a quantized weight as the layer computes with it, floating. The layer is not changed.

    Raises:
        ModelError: the library cannot read it here.
    """
    try:
        with torch.no_grad():
            return storage.read(layer).detach()
    except Exception as error:
        raise ModelError(
            f"{module}: the {storage.name} weight of {type(layer).__name__} {weight_shape(layer)} cannot be read here "
            f"({type(error).__name__}: {error}). Load the model on a device that can run it, or give the folder of the "
            "unquantized checkpoint: weights_from=..."
        ) from error


# --- the libraries -------------------------------------------------------------------------------------------------


def _weight_is(name: str, ready: str) -> Callable[[nn.Module], bool]:
    """Whether a layer's weight is of bitsandbytes' class `name` and quantized already, which `ready` tells."""

    def holds(layer: nn.Module) -> bool:
        weight: Any = getattr(layer, "weight", None)
        if type(weight).__name__ != name:
            return False
        return getattr(weight, ready, None) is not None or weight.dtype is torch.int8

    return holds


def _weight_of(library: str) -> Callable[[nn.Module], bool]:
    """Whether a layer's weight is a tensor of a library's own class."""
    return lambda layer: type(getattr(layer, "weight", None)).__module__.startswith(f"{library}.")


def _read_4bit(layer: Any) -> Tensor:
    # CPUs with AVX512-BF16 pack the weight anew in the first forward pass in eval mode. Unpacking it (`state_dict()`)
    # loses the scales' order in bitsandbytes 0.50, so that it is left packed, as it computes.
    if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        return _read_response(layer)
    return import_module("bitsandbytes.functional").dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def keep_4bit_unpacked(model: nn.Module) -> None:
    """Have bitsandbytes leave 4-bit weights as they were loaded.

    On CPUs with AVX512-BF16 it packs them anew in the first forward pass in eval mode: no gradient passes through them
    after that, and a `state_dict()`, as every save makes one, spoils them. Elsewhere this changes nothing.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _read_8bit(layer: Any) -> Tensor:
    # The first forward pass moves the scales from the weight to the layer's state.
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return import_module("bitsandbytes.functional").int8_vectorwise_dequant(
        layer.weight.data, scales.to(layer.weight.device)
    )


def _read_tensor(layer: Any) -> Tensor:
    return layer.weight.dequantize()


def _read_hqq(layer: Any) -> Tensor:
    return layer.dequantize()


def _is_packed(layer: nn.Module) -> bool:
    """A layer of some library that keeps no floating weight: GPTQ, AWQ, FP8 and others."""
    if type(layer) in (nn.Linear, Conv1D):
        return False
    weight = getattr(layer, "weight", None)
    return not isinstance(weight, Tensor) or not weight.dtype.is_floating_point or weight.dtype.itemsize == 1


def _read_response(layer: Any) -> Tensor:
    """What a layer does to the identity: a linear map is known by that, whatever it is packed in."""
    tensors = [*layer.parameters(), *layer.buffers()]
    floating = [t.dtype for t in tensors if t.dtype in (torch.float16, torch.bfloat16, torch.float32)]
    shape = weight_shape(layer)
    assert shape is not None
    eye = torch.eye(shape[1], dtype=floating[0] if floating else torch.float32, device=tensors[0].device)
    bias = getattr(layer, "bias", None)
    try:
        # Taken off, not subtracted: beside a large bias the entries of a weight are below what float16 holds.
        if bias is not None:
            layer.bias = None
        with torch.autocast(eye.device.type, enabled=False):
            return layer(eye).T
    finally:
        if bias is not None:
            layer.bias = bias


#: The first that holds counts.
STORAGES = (
    Storage("bitsandbytes 4-bit", _weight_is("Params4bit", "quant_state"), _read_4bit),
    Storage("bitsandbytes 8-bit", _weight_is("Int8Params", "SCB"), _read_8bit),
    Storage("torchao", _weight_of("torchao"), _read_tensor),
    Storage("quanto", _weight_of("optimum.quanto"), _read_tensor),
    Storage("HQQ", lambda layer: hasattr(layer, "W_q"), _read_hqq),
    Storage("packed", _is_packed, _read_response),
)
