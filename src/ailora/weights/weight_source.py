"""Sources of the weights to decompose: the model itself, or its unquantized checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from ailora.errors import InputError, ModelError
from ailora.model_path import model_folder
from ailora.path_kind import expand_home
from ailora.roles import find_linear_modules
from ailora.safetensors_io import Checkpoint, read_tensor
from ailora.weights.base_weight import BaseWeight, validate_matrix, weight_key
from ailora.weights.checkpoint_keys import match_checkpoint_keys

#: Function from a base weight to the floating-point matrix (out, in) to decompose, on the device of the layer.
#: `BaseWeight.read` is the source that reads the matrix from the model itself.
WeightSource = Callable[[BaseWeight], Float[Tensor, "out in_"]]

#: Largest relative distance between a quantized weight and its original. Quantization to two bits gives about 0.4, and
#: an unrelated matrix at least 1.
_MAX_QUANTIZATION_ERROR = 0.8


def open_checkpoint_source(base: nn.Module, checkpoint: Path | str, weights: Mapping[str, BaseWeight]) -> WeightSource:
    """Open a checkpoint as a source of weights to decompose. Weights are read on request.

    Args:
        base: The loaded model.
        checkpoint: A folder with safetensors files, a single file, or the hub id of a cached model.
        weights: Base weights to look up in the checkpoint, by module.

    Returns:
        The source.

    Raises:
        InputError: The checkpoint is missing, damaged or not in safetensors format.
        ModelError: The checkpoint lacks a module's weight.
    """
    # Users pass the checkpoint as the argument `weights_from` of `adapt`, so all messages use that name.
    # An empty string is refused, because `Path("")` is the current folder.
    if not isinstance(checkpoint, str | Path) or not checkpoint:
        raise InputError(f"weights_from must be a folder, a safetensors file or a hub id, got {checkpoint!r}")
    try:
        path = expand_home(checkpoint)
        is_path = isinstance(checkpoint, Path) or checkpoint.startswith((".", "/", "~")) or path.exists()
        stored = Checkpoint.open(path if is_path else model_folder(checkpoint))
        stored.validate_digests()
    except InputError as error:
        raise InputError(f"weights_from: {error}") from None
    # A checkpoint stores the weight of tied modules once, under the name of the first module.
    # In reverse order, the first of tied modules comes last and replaces the others.
    first_modules = {weight_key(layer): name for name, layer in reversed(find_linear_modules(base).items())}
    module_in_checkpoint = {module: first_modules.get(weight.key, module) for module, weight in weights.items()}
    try:
        tensor_names = match_checkpoint_keys(base, module_in_checkpoint.values(), stored.tensors)
    except ModelError as error:
        raise ModelError(f"weights_from: {error}") from None

    def read(weight: BaseWeight) -> Tensor:
        tensor_name = tensor_names[module_in_checkpoint[weight.module]]
        entry = stored.tensors[tensor_name]
        return _orient(read_tensor(entry), weight, f"{entry.name} in {entry.file}")

    return read


def relative_error(exact: Tensor, approximate: Tensor) -> float:
    """Return `|approximate - exact| / |exact|` in the Frobenius norm; 0 for a zero `exact`."""
    exact = exact.float() if exact.dtype.itemsize < 4 else exact
    exact_norm = exact.norm()
    return float((approximate.to(exact.dtype) - exact).norm() / exact_norm) if exact_norm > 0 else 0.0


def _orient(tensor: Tensor, weight: BaseWeight, name: str) -> Float[Tensor, "out in_"]:
    """Return a tensor of the checkpoint as the matrix (out, in) of a weight, transposed if needed.

    A square tensor fits in both orientations; the one nearer to the model's weight is taken.

    Raises:
        ModelError: The tensor is quantized, not finite, of unexpected shape, or far from the model's weight.
    """
    if not tensor.is_floating_point() or tensor.dtype.itemsize == 1:
        raise ModelError(f"{name} has the dtype {tensor.dtype}: weights_from takes an unquantized checkpoint")
    # If neither orientation has the expected shape, `validate_matrix` refuses the tensor.
    candidates = [matrix for matrix in (tensor, tensor.T) if tuple(matrix.shape) == weight.shape] or [tensor]
    for matrix in candidates:
        validate_matrix(matrix, weight.shape, name)
    try:
        dequantized = weight.read()
    except ModelError:
        # This machine cannot dequantize the weight, so the distances are unknown. Assume that the checkpoint stores the
        # tensor as the layer does. Of two candidates, the last is transposed.
        return candidates[-1 if weight.transposed else 0].to(weight.device)
    distances = [relative_error(matrix.to(dequantized.device), dequantized) for matrix in candidates]
    distance, matrix = min(zip(distances, candidates, strict=True), key=lambda pair: pair[0])
    if distance > _MAX_QUANTIZATION_ERROR:
        raise ModelError(f"{name} is not the weight of {weight.module}: the relative distance is {distance:.2f}")
    return matrix.to(dequantized.device)
