"""Gradients of a run's training loss with respect to the base weights, before the first step."""

from __future__ import annotations

from itertools import islice

from torch import Tensor
from transformers import set_seed

from ailora.analysis.model_weights import BaseWeights
from ailora.model_path import model_folder, resolve_model
from ailora.recipes.registry import make_recipe
from ailora.recipes.run_folder import RunFolder
from ailora.safetensors_io import Checkpoint
from ailora.weights.checkpoint_keys import checkpoint_key_map

#: Number of training batches over which the gradient is averaged. Fewer give a noisier gradient, and more take longer.
_NUM_BATCHES = 16


def initial_gradients(run: RunFolder, base: BaseWeights) -> dict[str, Tensor]:
    """Compute the gradient of a run's training loss with respect to the base weights, before the first step.

    The gradient is the mean over the first batches of the run, in float32 and without dropout.

    Args:
        run: Folder of a finished run.
        base: Base model of the run.

    Returns:
        Module of the base -> gradient (out, in), float32. Modules missing from the run's model are left out.

    Raises:
        InputError: The data or the model of the run no longer exist.
    """
    config = run.read_config()
    # Quantized weights cannot have gradients.
    recipe = make_recipe(config.model_copy(update={"quantization": None}))
    # With the seed of the run, a new classification head has the same initial values as in the run.
    set_seed(config.training["seed"])
    model = recipe.load_model(resolve_model(config.model)).float().eval()
    # Name in the base's checkpoint -> parameter name in the run's model.
    parameter_names = checkpoint_key_map(model, Checkpoint.open(model_folder(base.path)).tensors)
    weights = {
        module: model.get_parameter(parameter_names[tensor.name])
        for module, tensor in base.stored.items()
        if tensor.name in parameter_names
    }
    # Only analysed weights get gradients, because gradients of all weights would take as much memory as the model.
    model.requires_grad_(False)
    for weight in weights.values():
        weight.requires_grad_(True)
    batches = list(islice(recipe.training_batches(model), _NUM_BATCHES))
    for batch in batches:
        (model(**batch).loss / len(batches)).backward()
    return {
        module: gradient.T if base.is_transposed(module) else gradient
        for module, weight in weights.items()
        if (gradient := weight.grad) is not None
    }
