"""Base weights: read as matrices (out, in) from any format, select a role's rows, compute fingerprints."""

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
from ailora.weights.quantized import QuantizedFormat, dequantize, find_quantized_format

#: Dtypes of plain weights that can be decomposed.
READABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class BaseWeight:
    """The weight of a linear module in a base model.

    Attributes:
        module: Name of the module in the base model.
        layer: Layer that holds the weight, without PEFT's wrapper.
        quantized_format: Format of a quantized weight. None for a plain weight.
    """

    module: str
    layer: nn.Module
    quantized_format: QuantizedFormat | None

    @classmethod
    def from_model(cls, model: nn.Module, module: str) -> BaseWeight:
        """Look up the weight of a module in a base model.

        Raises:
            ModelError: The module does not exist, or is not a linear map.
        """
        layer = base_layer(model, module)
        return cls(module, layer, find_quantized_format(layer))

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (out, in), also of a transposed weight."""
        shape = weight_shape(self.layer)
        assert shape is not None
        return shape

    @property
    def transposed(self) -> bool:
        """Whether the layer stores the weight as (in, out)."""
        return is_stored_transposed(self.layer)

    @property
    def key(self) -> int:
        """Identifier of the stored weight, the same for tied layers."""
        return weight_key(self.layer)

    @property
    def device(self) -> torch.device:
        """Device of the stored weight, or the CPU if the layer has no tensors."""
        return next((t.device for t in self._tensors()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of the stored weight. None if the layer has no tensor `weight`."""
        return getattr(getattr(self.layer, "weight", None), "dtype", None)

    def read(self) -> Float[Tensor, "out in_"]:
        """Return the weight as a detached floating-point matrix (out, in).

        A plain weight keeps its dtype and shares memory with the layer. A quantized weight is dequantized. A sharded
        weight is gathered, so all processes must call this method.

        Raises:
            ModelError: The dtype cannot be decomposed, the weight cannot be dequantized, or entries are NaN or
                infinite.
        """
        if self.quantized_format is not None:
            weight = dequantize(self.layer, self.quantized_format, self.module)
        else:
            stored = self.stored()
            weight = stored.T if self.transposed else stored
            if weight.dtype not in READABLE:
                allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in READABLE)
                raise ModelError(f"{self} cannot be decomposed; allowed dtypes: {allowed}")
        validate_matrix(weight, self.shape, str(self))
        return weight

    def stored(self) -> Tensor:
        """Return a plain weight in its stored orientation, detached, and gathered if it is sharded."""
        stored = self.layer.weight
        assert isinstance(stored, Tensor)
        return full_tensor(stored.detach())

    def fingerprint(self) -> str:
        """Hash dtype, shape and bytes of the stored weight with SHA-256.

        A quantized weight is dequantized before it is hashed. If this machine cannot dequantize it, all tensors of the
        layer are hashed instead.

        Returns:
            The digest as hex.
        """
        if self.quantized_format is None:
            return digest(self.stored())
        try:
            return digest(self.read())
        except ModelError:
            return digest(*self._tensors())

    def validate_loaded(self) -> None:
        """Refuse a layer on the meta device.

        Raises:
            ModelError: The weight is not loaded, or accelerate offloads it.
        """
        if self.device.type != "meta":
            return
        if hasattr(self.layer, "_hf_hook"):
            raise ModelError(
                f"{self} is offloaded by accelerate: load the model on one device (device_map='cpu') before "
                "adapting, or write the adapter with `ailora init` and load it with PeftModel.from_pretrained"
            )
        raise ModelError(f"{self} is on the meta device: load the model's weights before adapting")

    def validate_readable(self) -> None:
        """Refuse a plain weight that cannot be decomposed.

        Raises:
            ModelError: See `read`.
        """
        # Reading a quantized weight here would dequantize it twice, which is slow. The later `read` validates it.
        if self.quantized_format is None:
            self.read()

    def __str__(self) -> str:
        weight = getattr(self.layer, "weight", None)
        if not isinstance(weight, Tensor):
            return f"{self.module}: the weight {self.shape} of {type(self.layer).__name__}"
        return f"{self.module}: weight {tuple(weight.shape)} of dtype {weight.dtype}"

    def _tensors(self) -> Iterable[Tensor]:
        return chain(self.layer.parameters(), self.layer.buffers())


def resolve_weights(model: nn.Module, modules: Iterable[str]) -> dict[str, BaseWeight]:
    """Look up the weights of modules in a base model.

    Returns:
        The base weight of each module, by module name.

    Raises:
        ModelError: See `BaseWeight.from_model`.
    """
    return {module: BaseWeight.from_model(model, module) for module in modules}


def base_layer(model: nn.Module, module: str) -> nn.Module:
    """Return the layer of a module, without PEFT's wrapper.

    Raises:
        ModelError: The module does not exist, or is not a linear map.
    """
    try:
        layer = model.get_submodule(module)
    except AttributeError:
        raise ModelError(f"the plan adapts {module}, but this {type(model).__name__} has no such module") from None
    inner = getattr(layer, "base_layer", layer)
    if weight_shape(inner) is None:
        raise ModelError(f"{module} is a {type(inner).__name__}, not a linear map")
    return inner


def weight_key(layer: nn.Module) -> int:
    """Return an identifier of a layer's stored weight, the same for tied layers."""
    # Not `id(layer.weight)`: a parametrization computes a new tensor at each access. `W_q` is the weight of HQQ layers.
    parameters = layer._parameters
    stored = next((parameters[name] for name in ("weight", "W_q") if parameters.get(name) is not None), None)
    return id(layer if stored is None else stored)


def is_stored_transposed(layer: nn.Module) -> bool:
    """Return whether a layer stores its weight as (in, out)."""
    # Only transformers' `Conv1D` does. GPT-2 and related models use this layer.
    return isinstance(layer, Conv1D)


def tensors_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers of a model by name. A tied tensor appears under each of its names."""
    # Calling `state_dict()` would make bitsandbytes unpack 4-bit weights, which changes them.
    named = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return dict(named)


def validate_dora_rows(weight: Float[Tensor, "out in_"], name: str) -> None:
    """Refuse a weight with zero rows. DoRA divides each row by its norm, and would output NaN from the first step.

    Raises:
        ModelError: At least one row is zero. The message gives the number of zero rows.
    """
    n_zero = int((~weight.any(dim=1)).sum())
    if n_zero:
        raise ModelError(
            f"{name}: {n_zero} of {len(weight)} rows are zero, and dora divides each row by its norm: exclude the "
            "module with `modules` or `roles`, or train without dora"
        )


def validate_matrix(weight: Tensor, shape: tuple[int, ...], name: str) -> None:
    """Refuse a tensor of unexpected shape or with NaN or infinite entries.

    Raises:
        ModelError: The shape differs, or an entry is not finite.
    """
    if tuple(weight.shape) != shape:
        raise ModelError(
            f"{name}: expected the shape {shape} of the layer, got {tuple(weight.shape)}. If the weight is packed in "
            "an unsupported format, pass the unquantized checkpoint as `weights_from`"
        )
    if not all_finite(weight):
        raise ModelError(f"{name} holds NaN or infinite entries")


def all_finite(tensor: Tensor) -> bool:
    """Return whether all entries of a tensor are finite."""
    # `aminmax` propagates NaN in a single pass without a copy; `isfinite(...).all()` takes longer than reading the
    # tensor from a file.
    return tensor.numel() == 0 or all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor))


def select_rows(weight: Float[Tensor, "out in_"], projection: Projection) -> Float[Tensor, "rows in_"]:
    """Return the rows of a projection from the weight of its module: all rows if the weight is not fused."""
    if not projection.fused:
        return weight
    return torch.cat([weight[start:stop] for start, stop in projection.rows])


def write_rows(weight: Float[Tensor, "out in_"], projection: Projection, rows: Float[Tensor, "rows in_"]) -> None:
    """Overwrite the rows of a projection in the weight of its module."""
    sizes = [stop - start for start, stop in projection.rows]
    for (start, stop), block in zip(projection.rows, rows.split(sizes), strict=True):
        weight[start:stop] = block


def matches_fingerprint(weight: Tensor, expected: str, original_dtype: str) -> bool | None:
    """Compare a plain weight, possibly loaded in a different dtype, with the fingerprint of the original weight.

    Args:
        weight: The stored weight.
        expected: `fingerprint` of the original weight.
        original_dtype: Dtype of the original weight, as in `Projection.dtype`.

    Returns:
        Whether the fingerprints match. None if this cannot be decided, because the original weight was quantized or
        loading may have rounded its entries.
    """
    dtype = getattr(torch, original_dtype, None)
    if dtype not in READABLE or weight.dtype not in READABLE:
        return None
    if digest(weight.to(dtype)) == expected:
        return True
    # Loading in a coarser dtype may have rounded entries: then a difference proves nothing.
    is_lossless = torch.promote_types(weight.dtype, dtype) is weight.dtype
    return False if is_lossless else None


def digest(*tensors: Tensor) -> str:
    """Hash dtypes, shapes and bytes of tensors with SHA-256, and return the digest as hex."""
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        hashed.update(tensor_bytes(tensor))
    return hashed.hexdigest()
