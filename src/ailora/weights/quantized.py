"""Storages of quantized weights: recognize a layer's storage, and dequantize the weight.

A quantization library is imported only for models quantized with the library.
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
    """A storage format for quantized weights.

    Attributes:
        name: Name in messages.
        matches: Function that returns whether a layer has this storage.
        read: Function that returns the weight of a layer as a floating-point matrix (out, in).
    """

    name: str
    matches: Callable[[nn.Module], bool]
    read: Callable[[nn.Module], Tensor]


def find_storage(layer: nn.Module) -> Storage | None:
    """Return the storage of a layer's quantized weight. None for a plain weight."""
    return next((storage for storage in STORAGES if storage.matches(layer)), None)


def dequantize(layer: nn.Module, storage: Storage, module: str) -> Float[Tensor, "out in_"]:
    """Return the weight of a quantized layer as a floating-point matrix (out, in). The layer does not change.

    Raises:
        ModelError: The library cannot read the weight on this machine.
    """
    try:
        with torch.no_grad():
            return storage.read(layer).detach()
    except Exception as error:
        raise ModelError(
            f"{module}: the {storage.name} weight of {type(layer).__name__} {weight_shape(layer)} cannot be read here "
            f"({type(error).__name__}: {error}). Load the model on a device that supports the format, or give the "
            "unquantized checkpoint: weights_from=..."
        ) from error


# --- the libraries -------------------------------------------------------------------------------------------------


def _weight_is(name: str, ready: str) -> Callable[[nn.Module], bool]:
    """Return a predicate for quantized weights of the bitsandbytes class `name`."""

    def matches(layer: nn.Module) -> bool:
        weight: Any = getattr(layer, "weight", None)
        if type(weight).__name__ != name:
            return False
        # Weights of the class are quantized only when moved to a device, which sets `ready` or the int8 dtype.
        return getattr(weight, ready, None) is not None or weight.dtype is torch.int8

    return matches


def _weight_of(library: str) -> Callable[[nn.Module], bool]:
    """Return a predicate for weights in a tensor subclass from a library."""
    return lambda layer: type(getattr(layer, "weight", None)).__module__.startswith(f"{library}.")


def _read_4bit(layer: Any) -> Tensor:
    # On CPUs with AVX512-BF16, the first forward pass in eval mode repacks the weight. Unpacking (`state_dict()`) loses
    # the order of the scales in bitsandbytes 0.50; evaluating the packed layer is correct.
    if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        return _read_response(layer)
    return import_module("bitsandbytes.functional").dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def keep_4bit_unpacked(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    Repacking, by the first forward pass in eval mode, blocks gradients, and every later `state_dict()` corrupts the
    weights. The function has no effect on other devices.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _read_8bit(layer: Any) -> Tensor:
    # The first forward pass moves the scales from the weight to the state of the layer.
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return import_module("bitsandbytes.functional").int8_vectorwise_dequant(
        layer.weight.data, scales.to(layer.weight.device)
    )


def _read_tensor(layer: Any) -> Tensor:
    return layer.weight.dequantize()


def _read_hqq(layer: Any) -> Tensor:
    return layer.dequantize()


def _is_packed(layer: nn.Module) -> bool:
    """Return whether a layer lacks a floating-point weight of 16 bits or more, as with GPTQ, AWQ and FP8."""
    if type(layer) in (nn.Linear, Conv1D):
        return False
    weight = getattr(layer, "weight", None)
    return not isinstance(weight, Tensor) or not weight.dtype.is_floating_point or weight.dtype.itemsize == 1


def _read_response(layer: Any) -> Tensor:
    """Return the weight in any packing as the layer's response to the identity matrix."""
    tensors = [*layer.parameters(), *layer.buffers()]
    floating = [t.dtype for t in tensors if t.dtype in (torch.float16, torch.bfloat16, torch.float32)]
    shape = weight_shape(layer)
    assert shape is not None
    eye = torch.eye(shape[1], dtype=floating[0] if floating else torch.float32, device=tensors[0].device)
    bias = getattr(layer, "bias", None)
    try:
        # Removed, not subtracted from the response: float16 sums with a large bias lose the small entries of a weight.
        if bias is not None:
            layer.bias = None
        with torch.autocast(eye.device.type, enabled=False):
            return layer(eye).T
    finally:
        if bias is not None:
            layer.bias = bias


#: In order of precedence: the last two would also match layers from the libraries above.
STORAGES = (
    Storage("bitsandbytes 4-bit", _weight_is("Params4bit", "quant_state"), _read_4bit),
    Storage("bitsandbytes 8-bit", _weight_is("Int8Params", "SCB"), _read_8bit),
    Storage("torchao", _weight_of("torchao"), _read_tensor),
    Storage("quanto", _weight_of("optimum.quanto"), _read_tensor),
    Storage("HQQ", lambda layer: hasattr(layer, "W_q"), _read_hqq),
    Storage("packed", _is_packed, _read_response),
)
