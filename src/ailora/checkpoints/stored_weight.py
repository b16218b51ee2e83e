"""Weights of modules in the form in which a checkpoint stores them."""

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
from ailora.weights.checkpoint_keys import checkpoint_key_map, match_checkpoint_keys
from ailora.weights.tied_weights import format_resize_hint


@dataclass(frozen=True)
class StoredWeight:
    """Weight of a module in a checkpoint.

    Attributes:
        module: Name of the module.
        tensor: Stored tensor of the weight.
        shape: Shape (out, in) of the weight.
        transposed: Whether the tensor is stored as (in, out).
    """

    module: str
    tensor: StoredTensor
    shape: tuple[int, int]
    transposed: bool

    def validate_floating(self) -> None:
        """Refuse a quantized weight.

        Raises:
            ModelError: The tensor is quantized.
        """
        if not self.tensor.floating:
            raise ModelError(f"{self.tensor} is quantized: give the unquantized checkpoint")

    def to_matrix(self, stored: Tensor) -> Tensor:
        """Convert the stored tensor to the weight matrix.

        Args:
            stored: Stored tensor (out, in), or (in, out) if transposed.

        Returns:
            Weight (out, in).

        Raises:
            ModelError: The weight has NaN or infinite entries.
        """
        matrix = stored.T if self.transposed else stored
        validate_matrix(matrix, self.shape, str(self.tensor))
        return matrix


def open_adapted_base(
    base: Path | str, adapter: AdapterCheckpoint
) -> tuple[PreTrainedModel, Checkpoint, dict[str, StoredWeight]]:
    """Open the base model of an adapter, without reading a weight.

    Args:
        base: Base model: a folder, a hub id in the cache, or `builtin:minilm`.
        adapter: Adapter of the model.

    Returns:
        The model on the meta device, the checkpoint, and the stored weight of every adapted module.

    Raises:
        InputError: The model is not available locally, is damaged, or is the unfinished output of a command.
        ModelError: A weight is missing or has an unexpected shape, or the configuration contradicts the weights.
    """
    folder = model_folder(base)
    validate_finished(folder)
    model = load_on_meta(str(folder), adapter.task_type, any_class=True)
    checkpoint = Checkpoint.open(folder)
    shapes = {module: lora.shape for module, lora in adapter.modules.items()}
    # Find the weights before validating the configuration, because these errors name the adapted module.
    weights = find_stored_weights(model, checkpoint, shapes)
    _validate_config(model, checkpoint)
    checkpoint.validate_digests()
    return model, checkpoint, weights


def _validate_config(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Refuse a configuration that does not describe the weights, because loaders would refuse the merged model.

    Raises:
        ModelError: The shape of a tensor contradicts the configuration, or the configuration describes a quantization
            of weights that are not quantized.
    """
    file = checkpoint.folder / "config.json"
    quantization = getattr(model.config, "quantization_config", None)
    if quantization is None:
        parameters = dict(model.named_parameters())
        for name, parameter_name in checkpoint_key_map(model, checkpoint.tensors).items():
            stored, parameter = checkpoint.tensors[name], parameters.get(parameter_name)
            if parameter is not None and stored.shape != tuple(parameter.shape):
                raise ModelError(
                    f"{stored}: {file} gives the shape {tuple(parameter.shape)}. The configuration belongs to a "
                    "different model, or the vocabulary was resized without saving the configuration"
                )
        return
    settings = quantization if isinstance(quantization, dict) else quantization.to_dict()
    has_quantized = not all(tensor.floating for tensor in checkpoint.tensors.values())
    # Some quantization methods, such as BitNet, quantize floating-point weights on loading.
    if has_quantized or settings.get("quantization_mode") == "online":
        return
    raise ModelError(
        f"{file} has a quantization_config ({settings.get('quant_method')}), but no tensor of the checkpoint is "
        "quantized: remove the key if the weights are meant to be unquantized, or give the quantized weights"
    )


def find_stored_weights(
    model: nn.Module, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, StoredWeight]:
    """Find the weights of modules in a checkpoint, by transformers' rules for loading.

    Args:
        model: Model on the meta device.
        checkpoint: Checkpoint of the model.
        shapes: Expected shape (out, in) of each module's weight.

    Returns:
        Stored weights by module name.

    Raises:
        ModelError: A weight is missing, is converted from several tensors, or has an unexpected shape.
    """
    names = match_checkpoint_keys(model, shapes, checkpoint.tensors, by_name_only=True)
    weights = {}
    for module, shape in shapes.items():
        tensor = checkpoint.tensors[names[module]]
        # GPT-2's `Conv1D` stores (in, out).
        transposed = is_stored_transposed(base_layer(model, module))
        expected = shape[::-1] if transposed else shape
        if tensor.shape != expected:
            hint = format_resize_hint(model, module, tensor.shape, expected)
            reason = hint or "; the checkpoint may be quantized, damaged, or from a different model"
            raise ModelError(f"{tensor}: expected the shape {expected} for {module}{reason}")
        weights[module] = StoredWeight(module, tensor, shape, transposed)
    return weights
