"""Sources of the weights that are decomposed: the model, or the checkpoint that it was quantized from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from ailora.errors import InputError, ModelError
from ailora.model_path import model_folder
from ailora.roles import find_linear_modules
from ailora.safetensors_io import Checkpoint, read_tensor
from ailora.weights.base_weight import BaseWeight, validate_matrix, weight_key
from ailora.weights.checkpoint_keys import match_checkpoint_keys

#: Returns the matrix (out, in) that is decomposed for a weight, floating, on the device of its layer.
#: `BaseWeight.read` is the source that reads the model.
WeightSource = Callable[[BaseWeight], Float[Tensor, "out in_"]]

#: Largest relative distance of a checkpoint's weight from the quantized one: two bits leave about 0.4, an unrelated
#: matrix is at least 1 away.
_MAX_QUANTIZATION_ERROR = 0.8


def open_checkpoint_source(base: nn.Module, checkpoint: Path | str, weights: Mapping[str, BaseWeight]) -> WeightSource:
    """Find the tensors of weights in a checkpoint; the source reads them one at a time.

    Args:
        base: the model whose checkpoint it is, as it was loaded.
        checkpoint: a folder with safetensors files, one such file, or a hub id in the cache.
        weights: the weights that the source will be asked for, by module.

    Returns:
        The source.

    Raises:
        InputError: no such files.
        ModelError: a module's weight is not among them, or has another shape.
    """
    if not isinstance(checkpoint, str | Path):
        raise InputError(f"weights_from is a folder or a safetensors file, not {checkpoint!r}")
    try:
        path = Path(checkpoint).expanduser()
        is_path = isinstance(checkpoint, Path) or checkpoint.startswith((".", "/", "~")) or path.exists()
        stored = Checkpoint.open(path if is_path else model_folder(checkpoint))
    except InputError as error:
        raise InputError(f"weights_from: {error}") from None
    # A checkpoint holds the weight of tied modules under the name of the first.
    first = {weight_key(layer): name for name, layer in reversed(find_linear_modules(base).items())}
    names = {module: first.get(weight.key, module) for module, weight in weights.items()}
    try:
        tensors = match_checkpoint_keys(base, names.values(), stored.tensors)
    except ModelError as error:
        raise ModelError(f"weights_from: {error}") from None

    def read(weight: BaseWeight) -> Tensor:
        entry = stored.tensors[tensors[names[weight.module]]]
        return _orient(read_tensor(entry), weight, f"{entry.name} in {entry.file}")

    return read


def relative_error(exact: Tensor, stored: Tensor) -> float:
    """Return `|stored - exact| / |exact|` in the Frobenius norm; 0 where `exact` is zero."""
    exact = exact.float() if exact.dtype.itemsize < 4 else exact
    size = exact.norm()
    return float((stored.to(exact.dtype) - exact).norm() / size) if size > 0 else 0.0


def _orient(tensor: Tensor, weight: BaseWeight, what: str) -> Float[Tensor, "out in_"]:
    """Return a tensor of a checkpoint as the matrix of a weight, transposed where it is stored the other way round.

    Raises:
        ModelError: it is quantized, of another shape, not finite, or far from the model's weight.
    """
    if not tensor.is_floating_point() or tensor.dtype.itemsize == 1:
        raise ModelError(f"{what} is of dtype {tensor.dtype}: weights_from takes an unquantized checkpoint")
    ways = [way for way in (tensor, tensor.T) if tuple(way.shape) == weight.shape] or [tensor]
    for way in ways:
        validate_matrix(way, weight.shape, what)
    try:
        quantized = weight.read()
    except ModelError:
        # Packed for another device, so that values cannot tell which way round a square weight is stored.
        return ways[-1 if weight.transposed else 0].to(weight.device)
    distances = [relative_error(quantized, way.to(quantized.device)) for way in ways]
    distance, way = min(zip(distances, ways, strict=True), key=lambda pair: pair[0])
    if distance > _MAX_QUANTIZATION_ERROR:
        raise ModelError(f"{what} is another weight than that of {weight.module}: {distance:.2f} away, relative to it")
    return way.to(quantized.device)
