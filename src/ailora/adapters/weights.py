"""The one place that knows how a base weight is stored, and the one that splits it."""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ailora.errors import ModelError
from ailora.inits import Factors
from ailora.roles import Projection, shape_of

_READABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def base_layer(model: nn.Module, module: str) -> nn.Module:
    """The layer of the base model that a projection names, without the PEFT layer around it.

    Raises:
        ModelError: the module is not a linear map.
    """
    layer = model.get_submodule(module)
    inner = getattr(layer, "base_layer", layer)
    if shape_of(inner) is None:
        raise ModelError(f"{module} is a {type(inner).__name__}, not a linear map")
    return inner


def stored_weight(layer: nn.Module) -> Tensor:
    """The tensor that a layer stores, as it stores it."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def read_weight(layer: nn.Module, module: str) -> Float[Tensor, "out in_"]:
    """A base weight as a plain floating matrix (out, in), detached, in its own dtype; shares memory with the layer's.

    Raises:
        ModelError: the weight is on the meta device, in a dtype without a decomposition, or not finite.
    """
    weight = stored_weight(layer).detach()
    what = f"{module}: weight {tuple(weight.shape)} of dtype {weight.dtype}"
    if weight.is_meta:
        raise ModelError(f"{what} is on the meta device: load the model's weights before adapting it")
    if weight.dtype not in _READABLE:
        allowed = ", ".join(str(d).removeprefix("torch.") for d in _READABLE)
        raise ModelError(f"{what} cannot be decomposed; allowed dtypes: {allowed}")
    if not torch.isfinite(weight).all():
        raise ModelError(f"{what} holds NaN or infinite entries")
    return weight.T if stored_transposed(layer) else weight


def stored_transposed(layer: nn.Module) -> bool:
    """Whether a layer stores its weight as (in, out), as transformers' `Conv1D` does."""
    return isinstance(layer, Conv1D)


def rows_of(weight: Float[Tensor, "out in_"], projection: Projection) -> Float[Tensor, "rows in_"]:
    """The rows of a whole weight that are the projection's; the weight itself where all are."""
    if not projection.fused:
        return weight
    return torch.cat([weight[start:stop] for start, stop in projection.rows])


def write_rows(weight: Float[Tensor, "out in_"], projection: Projection, rows: Float[Tensor, "rows in_"]) -> None:
    """Overwrite the rows of a whole weight that are the projection's."""
    sizes = [stop - start for start, stop in projection.rows]
    for (start, stop), block in zip(projection.rows, rows.split(sizes), strict=True):
        weight[start:stop] = block


def residual_weight(weight: Float[Tensor, "out in_"], factors: Factors, scaling: float) -> Float[Tensor, "out in_"]:
    """`W_res = W - s B0 A0`, in the dtype of the factors (float32 or float64)."""
    return weight.to(factors.A.dtype) - scaling * (factors.B @ factors.A)


def fingerprint(weight: Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of a stored weight, as hex."""
    digest = hashlib.sha256(f"{weight.dtype} {tuple(weight.shape)} ".encode())
    digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
