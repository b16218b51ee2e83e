"""Formats of quantized weights: recognize the format of a layer's weight, and dequantize the weight.

A quantization library is imported only if a model is quantized with it.
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
from ailora.full_precision import full_precision
from ailora.roles import weight_shape


@dataclass(frozen=True)
class QuantizedFormat:
    """A format of quantized weights.

    Attributes:
        name: Name in messages.
        matches: Function that returns whether the weight of a layer has this format.
        read: Function that returns the weight of a layer as a floating-point matrix (out, in).
    """

    name: str
    matches: Callable[[nn.Module], bool]
    read: Callable[[nn.Module], Tensor]


def find_quantized_format(layer: nn.Module) -> QuantizedFormat | None:
    """Return the format of a layer's quantized weight. None for a plain weight."""
    return next((each for each in QUANTIZED_FORMATS if each.matches(layer)), None)


def dequantize(layer: nn.Module, quantized_format: QuantizedFormat, module: str) -> Float[Tensor, "out in_"]:
    """Return the weight of a quantized layer as a floating-point matrix (out, in). The layer does not change.

    Raises:
        ModelError: The library cannot read the weight on this machine.
    """
    try:
        with torch.no_grad():
            return quantized_format.read(layer).detach()
    except Exception as error:
        raise ModelError(
            f"{module}: the {quantized_format.name} weight of {type(layer).__name__} {weight_shape(layer)} cannot be "
            f"read here ({type(error).__name__}: {error}). Load the model on a device that supports the format, or "
            "give the unquantized checkpoint: weights_from=..."
        ) from error


# --- predicates and readers of the formats -------------------------------------------------------------------------


def _weight_is(class_name: str, quantized_attribute: str) -> Callable[[nn.Module], bool]:
    """Return a predicate for layers with a quantized weight of a bitsandbytes class.

    Args:
        class_name: Name of the class.
        quantized_attribute: Attribute of the weight that quantization sets.
    """

    def matches(layer: nn.Module) -> bool:
        weight: Any = getattr(layer, "weight", None)
        if type(weight).__name__ != class_name:
            return False
        # bitsandbytes quantizes a weight when it is moved to a device. This sets the attribute, or changes the dtype to
        # int8.
        return getattr(weight, quantized_attribute, None) is not None or weight.dtype is torch.int8

    return matches


def _weight_of(library: str) -> Callable[[nn.Module], bool]:
    """Return a predicate for layers whose weight is a tensor subclass from `library`."""
    return lambda layer: type(getattr(layer, "weight", None)).__module__.startswith(f"{library}.")


def _read_4bit(layer: Any) -> Tensor:
    # On CPUs with AVX512-BF16, the first forward pass in eval mode repacks the weight. `state_dict()` unpacks the
    # weight, but bitsandbytes 0.50 then loses the order of the scales. Calling the layer gives correct results.
    if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        return _read_by_identity(layer)
    return import_module("bitsandbytes.functional").dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def prevent_cpu_repacking(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on CPUs with AVX512-BF16.

    Otherwise, the first forward pass in eval mode repacks the weights. Repacked weights block gradients, and each later
    `state_dict()` corrupts them. The function has no effect on other devices.
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


def _lacks_plain_weight(layer: nn.Module) -> bool:
    """Return whether a layer has no weight in 16-bit or wider floating point (GPTQ, AWQ, FP8)."""
    # `BaseWeight.read` refuses a plain layer with a different dtype.
    if type(layer) in (nn.Linear, Conv1D):
        return False
    weight = getattr(layer, "weight", None)
    return not isinstance(weight, Tensor) or not weight.dtype.is_floating_point or weight.dtype.itemsize == 1


def _read_by_identity(layer: Any) -> Tensor:
    """Recover a weight in an unknown format by applying the layer to the identity matrix."""
    tensors = [*layer.parameters(), *layer.buffers()]
    floating_dtypes = [t.dtype for t in tensors if t.dtype in (torch.float16, torch.bfloat16, torch.float32)]
    shape = weight_shape(layer)
    assert shape is not None
    dtype = floating_dtypes[0] if floating_dtypes else torch.float32
    eye = torch.eye(shape[1], dtype=dtype, device=tensors[0].device)
    bias = getattr(layer, "bias", None)
    try:
        # Remove the bias before the call instead of subtracting it afterwards: in float16, a sum with a large bias
        # loses the small entries of the weight.
        if bias is not None:
            layer.bias = None
        with full_precision(eye.device):
            return layer(eye).T
    finally:
        if bias is not None:
            layer.bias = bias


#: In order of precedence: the last format would also match layers of the formats above.
QUANTIZED_FORMATS = (
    QuantizedFormat("bitsandbytes 4-bit", _weight_is("Params4bit", "quant_state"), _read_4bit),
    QuantizedFormat("bitsandbytes 8-bit", _weight_is("Int8Params", "SCB"), _read_8bit),
    QuantizedFormat("torchao", _weight_of("torchao"), _read_tensor),
    QuantizedFormat("quanto", _weight_of("optimum.quanto"), _read_tensor),
    QuantizedFormat("HQQ", lambda layer: hasattr(layer, "W_q"), _read_hqq),
    QuantizedFormat("packed", _lacks_plain_weight, _read_by_identity),
)
