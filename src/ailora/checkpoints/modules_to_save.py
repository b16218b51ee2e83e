"""Fully fine-tuned modules saved with an adapter: heads, and the modules in `modules_to_save` of the plan."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint
from ailora.checkpoints.module_tasks import derive_seed
from ailora.errors import ModelError
from ailora.plan.adapter_plan import LoraOptions
from ailora.plan.task_type import get_task
from ailora.safetensors_io import Checkpoint, StoredTensor, read_tensor
from ailora.weights.checkpoint_keys import checkpoint_key_map
from ailora.weights.tied_weights import format_partly_trained_tie, get_tied_weights


def get_saved_module_names(options: LoraOptions) -> list[str]:
    """Return the names of modules to save: those in the plan, then the heads that PEFT adds for the task."""
    # PEFT itself adds the heads of the task, and raises a KeyError on loading if the file lacks a head.
    return list(dict.fromkeys([*options.modules_to_save, *get_task(options.task_type).peft_heads]))


def count_saved_parameters(model: PreTrainedModel, options: LoraOptions) -> int:
    """Return the number of parameters in fully fine-tuned modules, including the heads added by PEFT."""
    names = get_saved_module_names(options)
    modules = [module for name, module in model.named_modules() if _matches(name, names)]
    # PEFT copies every module. Parameters tied to each other are therefore trained separately, and counted twice.
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def collect_saved_tensors(
    model: PreTrainedModel, options: LoraOptions, checkpoint: Checkpoint, seed: int
) -> dict[str, StoredTensor | Tensor]:
    """Collect the tensors of fully fine-tuned modules. Heads missing from the checkpoint are initialized.

    Args:
        model: Base model on the meta device.
        options: Options of the plan.
        checkpoint: Checkpoint of the base model.
        seed: Seed of new heads.

    Returns:
        Tensors by parameter name: a `StoredTensor` from the checkpoint, or a new tensor in float32.

    Raises:
        ModelError: The checkpoint has no tensor of the expected shape for a module that is not a head.
    """
    heads = get_task(options.task_type).heads
    stored = _map_stored_tensors(model, checkpoint)
    tensors: dict[str, StoredTensor | Tensor] = {}
    for module, part in model.named_modules():
        if not _matches(module, get_saved_module_names(options)):
            continue
        shapes = {f"{module}.{key}": tuple(tensor.shape) for key, tensor in part.state_dict().items()}
        fitting = {
            name: stored[name] for name, shape in shapes.items() if name in stored and stored[name].shape == shape
        }
        missing = sorted(shapes.keys() - fitting.keys())
        if missing and not _matches(module, heads):
            raise ModelError(f"modules_to_save: the checkpoint has no tensor of the model's shape for {missing[0]}")
        new_tensors = _initialize_module(model, module, seed) if missing else {}
        tensors |= {name: fitting[name] if name in fitting else new_tensors[name] for name in shapes}
    return tensors


@dataclass(frozen=True)
class SavedTensors:
    """Tensors of fully fine-tuned modules, and the resulting changes of the model's configuration.

    Attributes:
        tensors: Tensors by parameter name. If `untied`, the tied parameters of the base are included.
        label_count: Number of outputs of the trained head. None if unchanged.
        vocab_size: Number of rows of the trained embeddings. None if unchanged.
        untied: Whether parameters that are tied in the base differ after training.
    """

    tensors: dict[str, StoredTensor]
    label_count: int | None
    vocab_size: int | None
    untied: bool


def find_saved_tensors(adapter: AdapterCheckpoint, model: PreTrainedModel, checkpoint: Checkpoint) -> SavedTensors:
    """Match the tensors of fully fine-tuned modules with the parameters of a model.

    Heads may have a new number of labels, and embeddings a new number of rows.

    Args:
        adapter: Adapter with the tensors.
        model: Base model on the meta device.
        checkpoint: Checkpoint of the base model.

    Returns:
        The tensors, and the changes to the configuration.

    Raises:
        ModelError: A tensor does not fit the model, heads or embeddings disagree on their number of rows, or only one
            of two tied parameters was trained.
    """
    parameters: Mapping[str, Tensor] = model.state_dict()
    embedding_parameters = set(_find_embedding_parameters(model))
    label_counts: set[int] = set()
    vocab_sizes: set[int] = set()
    for name, stored in adapter.saved.items():
        if name not in parameters:
            raise ModelError(f"{stored}: the model {type(model).__name__} has no parameter {name}")
        _validate_ties(adapter, model, name)
        shape = tuple(parameters[name].shape)
        if stored.shape == shape:
            continue
        is_head = get_task(adapter.task_type).predicts_classes and shape[:1] == (model.config.num_labels,)
        resized_shape = (*stored.shape[:1], *shape[1:])
        only_rows_differ = bool(stored.shape) and stored.shape == resized_shape
        if not only_rows_differ or not (is_head or name in embedding_parameters):
            raise ModelError(f"{stored}: the parameter {name} of {type(model).__name__} has the shape {shape}")
        (vocab_sizes if name in embedding_parameters else label_counts).add(stored.shape[0])
    if len(label_counts) > 1:
        raise ModelError(f"the heads in {adapter.folder} disagree on the number of labels: {sorted(label_counts)}")
    if vocab_sizes:
        _validate_vocabulary(adapter, vocab_sizes, embedding_parameters - get_tied_weights(model).keys())
    # A tied parameter gets the new rows from the parameter that it is tied to. If training has untied them, every
    # embedding needs a saved tensor with the new rows.
    tensors, untied = _resolve_ties(adapter, model, checkpoint)
    if vocab_sizes and untied:
        _validate_vocabulary(adapter, vocab_sizes, embedding_parameters)
    return SavedTensors(tensors, next(iter(label_counts), None), next(iter(vocab_sizes), None), untied)


def _find_embedding_parameters(model: PreTrainedModel) -> Iterator[str]:
    """Yield the names of all parameters with a row for each token of the vocabulary."""
    embeddings = [model.get_input_embeddings(), model.get_output_embeddings()]
    tied = set(get_tied_weights(model)) | set(get_tied_weights(model).values())
    for name, module in model.named_modules(remove_duplicate=False):
        if any(module is embedding for embedding in embeddings) or f"{name}.weight" in tied:
            yield from (f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False))


def _validate_vocabulary(adapter: AdapterCheckpoint, vocab_sizes: set[int], embedding_parameters: set[str]) -> None:
    """Refuse a resized vocabulary unless all embeddings were saved, with the same number of rows."""
    if len(vocab_sizes) > 1:
        raise ModelError(f"the embeddings in {adapter.folder} disagree on the vocabulary: {sorted(vocab_sizes)} rows")
    (rows,) = vocab_sizes
    saved = {name for name, stored in adapter.saved.items() if stored.shape[:1] == (rows,)}
    if others := sorted(embedding_parameters - saved):
        raise ModelError(
            f"the vocabulary in {adapter.folder} was resized to {rows} rows, but {others[0]} was not saved: save input "
            "and output embeddings, with model.save_pretrained(folder, save_embedding_layers=True)"
        )


def _validate_ties(adapter: AdapterCheckpoint, model: PreTrainedModel, name: str) -> None:
    """Refuse a trained parameter if its tied partner was not trained."""
    ties, saved = get_tied_weights(model), adapter.saved
    source = ties.get(name, name)
    tied_names = [tied for tied, shared in ties.items() if shared == source]
    if tied_names and not (source in saved and any(tied in saved for tied in tied_names)):
        other = source if name != source else tied_names[0]
        raise ModelError(f"{saved[name]}: {format_partly_trained_tie(name, other)}")


def _resolve_ties(
    adapter: AdapterCheckpoint, model: PreTrainedModel, checkpoint: Checkpoint
) -> tuple[dict[str, StoredTensor], bool]:
    """Drop duplicates of tied tensors. If some tied tensors differ, untie all parameters instead.

    Returns:
        The tensors to save, and whether parameters are untied. Untied parameters are included even if unchanged.
    """
    # The configuration ties either all parameters or none, so a single pair that differs unties all.
    saved, ties = adapter.saved, get_tied_weights(model)
    pairs = {tied: source for tied, source in ties.items() if tied in saved and source in saved}
    if all(torch.equal(read_tensor(saved[tied]), read_tensor(saved[source])) for tied, source in pairs.items()):
        return {name: stored for name, stored in saved.items() if name not in pairs}, False
    base_tensors = _map_stored_tensors(model, checkpoint)
    return {name: base_tensors[name] for name in {*ties, *ties.values()} if name in base_tensors} | saved, True


def _matches(module: str, names: Iterable[str]) -> bool:
    """Return whether a module name ends with any of the names. This is PEFT's rule."""
    return any(module.endswith(name) for name in names)


def _map_stored_tensors(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """Map parameter names to stored tensors. Each of several tied parameters has an entry."""
    stored = {name: checkpoint.tensors[key] for key, name in checkpoint_key_map(model, checkpoint.tensors).items()}
    for tied, source in get_tied_weights(model).items():
        if tied not in stored and source in stored:
            stored[tied] = stored[source]
    return stored


def _initialize_module(model: PreTrainedModel, module: str, seed: int) -> Mapping[str, Tensor]:
    """Initialize a copy of a module as transformers does, and return its tensors by parameter name, in float32."""
    # With a forked generator, the values do not depend on the caller's random state, and do not change this state.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(derive_seed(seed, module))
        new_module = copy.deepcopy(model.get_submodule(module)).to_empty(device="cpu")
        new_module.float().apply(model._init_weights)  # noqa: SLF001 (transformers has no public equivalent)
    return {f"{module}.{key}": tensor for key, tensor in new_module.state_dict().items()}
