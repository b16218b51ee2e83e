"""Base weights as plain matrices (out, in), whichever way a layer stores them, and the rows of a role."""

from __future__ import annotations

import hashlib
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ailora.errors import ModelError
from ailora.roles import Projection, weight_shape
from ailora.safetensors_io import tensor_bytes
from ailora.weights.dtensor import full_tensor
from ailora.weights.quantized import dequantized, find_storage

#: Dtypes that are decomposed.
READABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def base_layer(model: nn.Module, module: str) -> nn.Module:
    """The layer of the base model that a projection names, without the PEFT layer around it.

    Raises:
        ModelError: the module is not there, or not a linear map.
    """
    try:
        layer = model.get_submodule(module)
    except AttributeError:
        raise ModelError(f"the plan names {module}, which this {type(model).__name__} does not have") from None
    inner = getattr(layer, "base_layer", layer)
    if weight_shape(inner) is None:
        raise ModelError(f"{module} is a {type(inner).__name__}, not a linear map")
    return inner


def tensors_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer of a model, tied ones under each of their names.

    Not its `state_dict`: bitsandbytes unpacks 4-bit weights when it is asked for one, and changes them by that.
    """
    named = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return dict(named)


def weight_key(layer: nn.Module) -> int:
    """What tells two stored weights apart: tied layers have one.

    Not `layer.weight`, which parametrizations compute anew each time.
    """
    stored = next(
        (layer._parameters[name] for name in ("weight", "W_q") if layer._parameters.get(name) is not None), None
    )
    return id(layer if stored is None else stored)


def weight_device(layer: nn.Module) -> torch.device:
    """Where a layer's weight is."""
    return next((t.device for t in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))


def validate_readable(layer: nn.Module, module: str) -> None:
    """Refuse a layer whose weight cannot be decomposed, as far as can be seen without dequantizing it.

    Raises:
        ModelError: as `read_weight`.
    """
    if find_storage(layer) is None:
        read_weight(layer, module)


def validate_loaded(layer: nn.Module, module: str) -> None:
    """Refuse a layer without data.

    Raises:
        ModelError: the layer is on the meta device.
    """
    if weight_device(layer).type == "meta":
        raise ModelError(f"{_described(layer, module)} is on the meta device: load the model's weights before adapting")


def read_weight(layer: nn.Module, module: str) -> Float[Tensor, "out in_"]:
    """A base weight as a plain floating matrix (out, in), detached.

    A plain weight comes in its own dtype and shares memory with the layer's; a quantized one is dequantized, one that
    is spread over processes is gathered, by all of them together.

    Raises:
        ModelError: the weight is in a dtype without a decomposition, packed in a way that nobody knows, or not finite.
    """
    storage = find_storage(layer)
    if storage is not None:
        weight = dequantized(layer, storage, module)
    else:
        stored = stored_weight(layer)
        weight = stored.T if is_stored_transposed(layer) else stored
        if weight.dtype not in READABLE:
            allowed = ", ".join(str(d).removeprefix("torch.") for d in READABLE)
            raise ModelError(f"{_described(layer, module)} cannot be decomposed; allowed dtypes: {allowed}")
    validate_matrix(weight, weight_shape(layer), _described(layer, module))
    return weight


def stored_weight(layer: nn.Module) -> Tensor:
    """A plain weight as its layer stores it, detached, and gathered where it is spread over processes."""
    stored = layer.weight
    assert isinstance(stored, Tensor)
    return full_tensor(stored.detach())


def validate_matrix(weight: Tensor, shape: tuple[int, ...] | None, what: str) -> None:
    """Refuse what is no finite matrix of a shape.

    Raises:
        ModelError: another shape, NaN or infinite entries.
    """
    if tuple(weight.shape) != shape:
        raise ModelError(
            f"{what} is {tuple(weight.shape)}, the layer maps {shape}: it looks packed, by a library that is unknown. "
            "Give the folder of the unquantized checkpoint: weights_from=..."
        )
    if not all_finite(weight):
        raise ModelError(f"{what} holds NaN or infinite entries")


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor has no NaN and no infinite entry. One pass over it, without a copy."""
    return tensor.numel() == 0 or all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))


def _described(layer: nn.Module, module: str) -> str:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return f"{module}: the weight {weight_shape(layer)} of {type(layer).__name__}"
    return f"{module}: weight {tuple(weight.shape)} of dtype {weight.dtype}"


def is_stored_transposed(layer: nn.Module) -> bool:
    """Whether a layer stores its weight as (in, out), as transformers' `Conv1D` does."""
    return isinstance(layer, Conv1D)


def select_rows(weight: Float[Tensor, "out in_"], projection: Projection) -> Float[Tensor, "rows in_"]:
    """The rows of a whole weight that are the projection's; the weight itself where all are."""
    if not projection.fused:
        return weight
    return torch.cat([weight[start:stop] for start, stop in projection.rows])


def write_rows(weight: Float[Tensor, "out in_"], projection: Projection, rows: Float[Tensor, "rows in_"]) -> None:
    """Overwrite the rows of a whole weight that are the projection's."""
    sizes = [stop - start for start, stop in projection.rows]
    for (start, stop), block in zip(projection.rows, rows.split(sizes), strict=True):
        weight[start:stop] = block


def fingerprint(layer: nn.Module, module: str) -> str:
    """SHA-256 over dtype, shape and bytes of a weight, as hex: as it is stored, or of a quantized one as it is read.

    Of a weight that cannot be read here, over all tensors that the layer stores.
    """
    if find_storage(layer) is None:
        return digest(stored_weight(layer))
    try:
        return digest(read_weight(layer, module))
    except ModelError:
        return digest(*layer.parameters(), *layer.buffers())


def matches_fingerprint(weight: Tensor, expected: str, made_from: str) -> bool | None:
    """Whether a plain weight is the one of a fingerprint, whatever dtype it was loaded in.

    Args:
        weight: as it is stored here.
        expected: `fingerprint` of the weight that something was made from.
        made_from: the dtype of that weight, as `Projection.dtype` has it.

    Returns:
        None where it cannot be told: that weight was quantized, or had bits that this one has lost.
    """
    dtype = getattr(torch, made_from, None)
    if dtype not in READABLE or weight.dtype not in READABLE:
        return None
    if torch.promote_types(weight.dtype, dtype) is not weight.dtype and weight.dtype is not dtype:
        # From a coarser dtype nothing can be told, unless that weight was itself as coarse before.
        return True if digest(weight.to(dtype)) == expected else None
    return digest(weight.to(dtype)) == expected


def digest(*tensors: Tensor) -> str:
    """SHA-256 over dtypes, shapes and bytes, as hex."""
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        hashed.update(tensor_bytes(tensor))
    return hashed.hexdigest()


def relative_error(exact: Tensor, stored: Tensor) -> float:
    """`|stored - exact| / |exact|` in the Frobenius norm; 0 where `exact` is zero."""
    exact = exact.to(torch.promote_types(exact.dtype, torch.float32))
    size = exact.norm()
    return float((stored.to(exact.dtype) - exact).norm() / size) if size > 0 else 0.0
