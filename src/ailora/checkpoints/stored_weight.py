"""The weights of a model's modules where they lie in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel

from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint
from ailora.checkpoints.output_dir import validate_finished
from ailora.errors import ModelError
from ailora.model_loading import load_on_meta
from ailora.model_path import model_folder
from ailora.safetensors_io import Checkpoint, StoredTensor
from ailora.weights.base_weight import base_layer, is_stored_transposed, validate_matrix
from ailora.weights.checkpoint_keys import match_checkpoint_keys


@dataclass(frozen=True)
class StoredWeight:
    """A module's weight in a checkpoint.

    Attributes:
        module: The module's name.
        tensor: Where the weight lies.
        shape: Its shape (out, in).
        transposed: Whether it is stored as (in, out).
    """

    module: str
    tensor: StoredTensor
    shape: tuple[int, int]
    transposed: bool

    def validate_floating(self) -> None:
        """Refuse a quantized weight.

        Raises:
            ModelError: Names the tensor.
        """
        if not self.tensor.floating:
            raise ModelError(f"{self.tensor} is quantized: give the unquantized checkpoint")

    def to_matrix(self, stored: Tensor) -> Tensor:
        """Return the weight (out, in), given the tensor as it is stored.

        Raises:
            ModelError: It holds NaN or infinite entries.
        """
        matrix = stored.T if self.transposed else stored
        validate_matrix(matrix, self.shape, str(self.tensor))
        return matrix


def open_adapted_base(
    base: Path | str, adapter: AdapterCheckpoint
) -> tuple[PreTrainedModel, Checkpoint, dict[str, StoredWeight]]:
    """Open the base model of an adapter: on the meta device, its checkpoint, and the weights that are adapted.

    Raises:
        InputError: No such model, or one that a command of ours has not finished.
        ModelError: See `find_stored_weights`.
    """
    folder = model_folder(base)
    validate_finished(folder)
    model = load_on_meta(str(folder), adapter.task_type, any_class=True)
    checkpoint = Checkpoint.open(folder)
    shapes = {module: lora.shape for module, lora in adapter.modules.items()}
    return model, checkpoint, find_stored_weights(model, checkpoint, shapes)


def find_stored_weights(
    model: nn.Module, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, StoredWeight]:
    """Find the weights of modules in a checkpoint, by the names under which transformers would load them.

    Args:
        model: The model, on the meta device.
        checkpoint: Its checkpoint.
        shapes: The shape (out, in) that each module's weight has to have.

    Raises:
        ModelError: The checkpoint does not hold a weight as it is, or in another shape.
    """
    names = match_checkpoint_keys(model, shapes, checkpoint.tensors, by_name_only=True)
    weights = {}
    for module, shape in shapes.items():
        tensor = checkpoint.tensors[names[module]]
        transposed = is_stored_transposed(base_layer(model, module))
        expected = shape[::-1] if transposed else shape
        if tensor.shape != expected:
            raise ModelError(
                f"{tensor}: expected {expected} for {module}; is the checkpoint quantized, damaged or of another model?"
            )
        weights[module] = StoredWeight(module, tensor, shape, transposed)
    return weights
