"""Where the weights that are decomposed come from: the model itself, or the checkpoint that it was quantized from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from ailora.errors import InputError, ModelError
from ailora.roles import linear_modules, weight_shape
from ailora.safetensors_io import Checkpoint, read_tensor
from ailora.weights.base_weight import (
    base_layer,
    is_stored_transposed,
    read_weight,
    relative_error,
    validate_matrix,
    weight_device,
    weight_key,
)
from ailora.weights.checkpoint_keys import match_checkpoint_keys

#: The name of a module -> its weight (out, in), floating, on the device of its layer.
Source = Callable[[str], Float[Tensor, "out in_"]]

#: A weight that is farther than this from the quantized one, relative to it, is another weight: two bits leave about
#: 0.4, an unrelated matrix is at least 1 away.
_SAME_WEIGHT = 0.8


def model_source(base: nn.Module) -> Source:
    """The weights of the model, quantized ones dequantized."""
    return lambda module: read_weight(base_layer(base, module), module)


def checkpoint_source(base: nn.Module, checkpoint: Path | str, layers: Mapping[str, nn.Module]) -> Source:
    """The weights of a checkpoint, read one at a time. Finds all of them before the first one is read.

    Args:
        base: the model whose checkpoint it is, as it was loaded.
        checkpoint: a folder with safetensors files, or one such file.
        layers: the layers of the modules that will be asked for, by name in `base`.

    Raises:
        InputError: no such files.
        ModelError: a module's weight is not among them, or has another shape.
    """
    if not isinstance(checkpoint, str | Path):
        raise InputError(f"weights_from is a folder or a safetensors file, not {checkpoint!r}")
    stored = _opened(checkpoint)
    # Of tied modules the first name counts, under which the checkpoint holds their weight.
    first = {weight_key(layer): name for name, layer in reversed(linear_modules(base).items())}
    names = {module: first.get(weight_key(layer), module) for module, layer in layers.items()}
    try:
        tensors = match_checkpoint_keys(base, names.values(), stored.tensors)
    except ModelError as error:
        raise ModelError(f"weights_from: {error}") from None

    def read(module: str) -> Tensor:
        entry = stored.tensors[tensors[names[module]]]
        return _fitting(read_tensor(entry), layers[module], module, f"{entry.name} in {entry.file}")

    return read


def _opened(checkpoint: Path | str) -> Checkpoint:
    try:
        return Checkpoint.open(checkpoint)
    except InputError as error:
        raise InputError(f"weights_from: {error}") from None


def _fitting(weight: Tensor, layer: nn.Module, module: str, what: str) -> Float[Tensor, "out in_"]:
    """A tensor of a checkpoint as the matrix of a layer, which may be stored the other way round.

    Raises:
        ModelError: it is quantized, of another shape, not finite, or far from the layer's own.
    """
    if not weight.is_floating_point() or weight.dtype.itemsize == 1:
        raise ModelError(f"{what} is of dtype {weight.dtype}: weights_from takes an unquantized checkpoint")
    ways = [way for way in (weight, weight.T) if tuple(way.shape) == weight_shape(layer)] or [weight]
    for way in ways:
        validate_matrix(way, weight_shape(layer), what)
    try:
        own = read_weight(layer, module)
    except ModelError:
        # Packed for another device. Then the names have to do.
        return ways[-1 if is_stored_transposed(layer) else 0].to(weight_device(layer))
    distance, way = min(((relative_error(own, way.to(own.device)), way) for way in ways), key=lambda pair: pair[0])
    if distance > _SAME_WEIGHT:
        raise ModelError(f"{what} is another weight than that of {module}: {distance:.2f} away, relative to it")
    return way.to(own.device)
