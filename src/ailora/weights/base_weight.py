"""Base weights as plain matrices (out, in), however a layer stores them, and the rows of a role."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ailora.errors import ModelError
from ailora.roles import Projection, weight_shape
from ailora.safetensors_io import tensor_bytes
from ailora.weights.dtensor import full_tensor
from ailora.weights.quantized import Storage, dequantize, find_storage

#: Dtypes that are decomposed.
READABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class BaseWeight:
    """The weight of one linear module of a base model, looked up once.

    Attributes:
        module: name of the module in the base model.
        layer: the layer that holds the weight, without the PEFT layer around it.
        storage: how a library stores the weight quantized; None for a plain weight.
    """

    module: str
    layer: nn.Module
    storage: Storage | None

    @classmethod
    def from_model(cls, model: nn.Module, module: str) -> BaseWeight:
        """Look up a module of a base model.

        Raises:
            ModelError: the module is not there, or not a linear map.
        """
        layer = base_layer(model, module)
        return cls(module, layer, find_storage(layer))

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), whichever way the layer stores it."""
        shape = weight_shape(self.layer)
        assert shape is not None
        return shape

    @property
    def transposed(self) -> bool:
        """Whether the layer stores (in, out)."""
        return is_stored_transposed(self.layer)

    @property
    def key(self) -> int:
        """Identity of the stored weight: equal for tied layers."""
        return weight_key(self.layer)

    @property
    def device(self) -> torch.device:
        """Device of the stored weight."""
        return next((t.device for t in self._tensors()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of the stored weight; None where the layer has no tensor `weight`."""
        return getattr(getattr(self.layer, "weight", None), "dtype", None)

    def read(self) -> Float[Tensor, "out in_"]:
        """Return the weight as a plain floating matrix (out, in), detached.

        A plain weight keeps its dtype and shares memory with the layer's; a quantized one is dequantized; one that is
        sharded over processes is gathered, by all of them together.

        Raises:
            ModelError: a dtype without a decomposition, an unknown packing, NaN or infinite entries.
        """
        if self.storage is not None:
            weight = dequantize(self.layer, self.storage, self.module)
        else:
            stored = self.stored()
            weight = stored.T if self.transposed else stored
            if weight.dtype not in READABLE:
                allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in READABLE)
                raise ModelError(f"{self} cannot be decomposed; allowed dtypes: {allowed}")
        validate_matrix(weight, self.shape, str(self))
        return weight

    def stored(self) -> Tensor:
        """Return a plain weight as its layer stores it, detached, gathered where it is sharded."""
        stored = self.layer.weight
        assert isinstance(stored, Tensor)
        return full_tensor(stored.detach())

    def fingerprint(self) -> str:
        """Return the SHA-256 of dtype, shape and bytes of the weight as stored, as hex.

        A quantized weight is hashed as it is read; one that cannot be read here, by all tensors of its layer.
        """
        if self.storage is None:
            return digest(self.stored())
        try:
            return digest(self.read())
        except ModelError:
            return digest(*self._tensors())

    def validate_loaded(self) -> None:
        """Refuse a layer on the meta device.

        Raises:
            ModelError: the weights are not loaded.
        """
        if self.device.type == "meta":
            raise ModelError(f"{self} is on the meta device: load the model's weights before adapting")

    def validate_readable(self) -> None:
        """Refuse a weight that cannot be decomposed, as far as can be told without dequantizing it.

        Raises:
            ModelError: see `read`.
        """
        if self.storage is None:
            self.read()

    def __str__(self) -> str:
        weight = getattr(self.layer, "weight", None)
        if not isinstance(weight, Tensor):
            return f"{self.module}: the weight {self.shape} of {type(self.layer).__name__}"
        return f"{self.module}: weight {tuple(weight.shape)} of dtype {weight.dtype}"

    def _tensors(self) -> Iterable[Tensor]:
        return chain(self.layer.parameters(), self.layer.buffers())


def resolve_weights(model: nn.Module, modules: Iterable[str]) -> dict[str, BaseWeight]:
    """Look up modules of a base model, once for everything that is done with them.

    Raises:
        ModelError: see `BaseWeight.from_model`.
    """
    return {module: BaseWeight.from_model(model, module) for module in modules}


def base_layer(model: nn.Module, module: str) -> nn.Module:
    """Return the layer of the base model that a projection names, without the PEFT layer around it.

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


def weight_key(layer: nn.Module) -> int:
    """Return the identity of a layer's stored weight, which tied layers share.

    Not of `layer.weight`, which parametrizations compute anew each time.
    """
    parameters = layer._parameters
    stored = next((parameters[name] for name in ("weight", "W_q") if parameters.get(name) is not None), None)
    return id(layer if stored is None else stored)


def is_stored_transposed(layer: nn.Module) -> bool:
    """Return whether a layer stores its weight as (in, out), as transformers' `Conv1D` does."""
    return isinstance(layer, Conv1D)


def tensors_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer of a model, tied ones under each of their names.

    Not its `state_dict`: bitsandbytes unpacks 4-bit weights for one, and changes them by that.
    """
    named = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return dict(named)


def validate_dora_rows(weight: Float[Tensor, "out in_"], name: str) -> None:
    """Refuse rows that a DoRA would divide by their norm of zero: its outputs would not be numbers from the start.

    Raises:
        ModelError: how many rows of how many are zero.
    """
    zero = int((~weight.any(dim=1)).sum())
    if zero:
        raise ModelError(
            f"{name}: {zero} of {len(weight)} rows are zero, which dora divides by their norm: leave the module out "
            "(modules, roles), or train without dora"
        )


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
