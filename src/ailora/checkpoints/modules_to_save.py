"""Modules that PEFT trains whole and looks for in an adapter's file: heads, and what the plan adds to them."""

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


def modules_to_save_names(options: LoraOptions) -> list[str]:
    """Return `modules_to_save` as it is when PEFT has wrapped the model for the task, in its order."""
    return list(dict.fromkeys([*options.modules_to_save, *get_task(options.task_type).peft_heads]))


def count_saved_parameters(model: PreTrainedModel, options: LoraOptions) -> int:
    """Count the parameters of the modules that are trained whole, heads that PEFT takes by itself among them."""
    names = modules_to_save_names(options)
    modules = [module for name, module in model.named_modules() if _matches(name, names)]
    # PEFT copies each, also where they are tied.
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def modules_to_save_tensors(
    model: PreTrainedModel, options: LoraOptions, checkpoint: Checkpoint, seed: int
) -> dict[str, StoredTensor | Tensor]:
    """Return the tensors of all modules that are trained whole, by the name of the parameter in the model.

    Those of the checkpoint where it has them, unread; else fresh ones, drawn as transformers does for a new head.

    Args:
        model: The base model on the meta device.
        options: The plan's.
        checkpoint: The base model's.
        seed: Seed of fresh heads, which are float32.

    Raises:
        ModelError: A module that is no new head is not in the checkpoint.
    """
    heads = get_task(options.task_type).heads
    stored = _stored_tensors(model, checkpoint)
    tensors: dict[str, StoredTensor | Tensor] = {}
    for module, part in model.named_modules():
        if not _matches(module, modules_to_save_names(options)):
            continue
        shapes = {f"{module}.{key}": tuple(tensor.shape) for key, tensor in part.state_dict().items()}
        kept = {name: stored[name] for name, shape in shapes.items() if name in stored and stored[name].shape == shape}
        missing = sorted(shapes.keys() - kept.keys())
        if missing and not _matches(module, heads):
            raise ModelError(f"modules_to_save: {missing[0]} is not in the checkpoint as it is")
        fresh = _draw_fresh(model, module, seed) if missing else {}
        tensors |= {name: kept[name] if name in kept else fresh[name] for name in shapes}
    return tensors


@dataclass(frozen=True)
class SavedTensors:
    """Tensors that an adapter trained whole, as they change a checkpoint and its configuration.

    Attributes:
        tensors: by name of the parameter in the model; where ties end, those of the base that were tied among them.
        label_count: outputs of the head, where the model has another number.
        vocabulary: rows of the embeddings, where the model has another number.
        untied: whether tied parameters became different ones.
    """

    tensors: dict[str, StoredTensor]
    label_count: int | None
    vocabulary: int | None
    untied: bool


def find_saved_tensors(adapter: AdapterCheckpoint, model: PreTrainedModel, checkpoint: Checkpoint) -> SavedTensors:
    """Find the places of the tensors that an adapter trained whole.

    A head may have another number of labels, and the embeddings other numbers of rows, all of them the same.

    Args:
        adapter: The adapter.
        model: The base model on the meta device.
        checkpoint: The base model's.

    Raises:
        ModelError: A tensor has no place in the model, or one of two tied parameters was trained alone.
    """
    parameters: Mapping[str, Tensor] = model.state_dict()
    of_embeddings = set(_embedding_parameters(model))
    label_counts: set[int] = set()
    vocabularies: set[int] = set()
    for name, stored in adapter.saved.items():
        if name not in parameters:
            raise ModelError(f"{stored}: the model {type(model).__name__} has no parameter {name}")
        _validate_ties(adapter, model, name)
        shape = tuple(parameters[name].shape)
        if stored.shape == shape:
            continue
        of_labels = get_task(adapter.task_type).predicts_classes and shape[:1] == (model.config.num_labels,)
        if stored.shape[1:] != shape[1:] or not (of_labels or name in of_embeddings):
            raise ModelError(f"{stored}: the parameter {name} of {type(model).__name__} is {shape}")
        (vocabularies if name in of_embeddings else label_counts).add(stored.shape[0])
    if len(label_counts) > 1:
        raise ModelError(f"the heads in {adapter.folder} disagree on the number of labels: {sorted(label_counts)}")
    if vocabularies:
        _validate_vocabulary(adapter, vocabularies, of_embeddings - _ties(model).keys())
    tensors, untied = _without_ties(adapter, model, checkpoint)
    if vocabularies and untied:
        _validate_vocabulary(adapter, vocabularies, of_embeddings)
    return SavedTensors(tensors, next(iter(label_counts), None), next(iter(vocabularies), None), untied)


def _embedding_parameters(model: PreTrainedModel) -> Iterator[str]:
    """Yield the names of all parameters that have a row for each token of the vocabulary."""
    embeddings = [model.get_input_embeddings(), model.get_output_embeddings()]
    tied = set(_ties(model)) | set(_ties(model).values())
    for name, module in model.named_modules(remove_duplicate=False):
        if any(module is embedding for embedding in embeddings) or f"{name}.weight" in tied:
            yield from (f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False))


def _validate_vocabulary(adapter: AdapterCheckpoint, vocabularies: set[int], of_embeddings: set[str]) -> None:
    """Refuse a vocabulary of another size for some of the embeddings only."""
    if len(vocabularies) > 1:
        raise ModelError(f"the embeddings in {adapter.folder} disagree on the vocabulary: {sorted(vocabularies)} rows")
    (rows,) = vocabularies
    saved = {name for name, stored in adapter.saved.items() if stored.shape[0] == rows}
    if others := sorted(of_embeddings - saved):
        raise ModelError(
            f"the vocabulary in {adapter.folder} was resized to {rows} rows, and {others[0]} was not saved with it: "
            "save both embeddings, model.save_pretrained(folder, save_embedding_layers=True)"
        )


def _ties(model: PreTrainedModel) -> Mapping[str, str]:
    return getattr(model, "all_tied_weights_keys", None) or {}


def _validate_ties(adapter: AdapterCheckpoint, model: PreTrainedModel, name: str) -> None:
    """Refuse one of two tied parameters that was trained alone."""
    ties, saved = _ties(model), adapter.saved
    source = ties.get(name, name)
    sharing = [tied for tied, shared in ties.items() if shared == source]
    if sharing and not (source in saved and any(tied in saved for tied in sharing)):
        other = source if name != source else sharing[0]
        raise ModelError(f"{saved[name]}: {name} and {other} share one weight, and the adapter trained one of them")


def _without_ties(
    adapter: AdapterCheckpoint, model: PreTrainedModel, checkpoint: Checkpoint
) -> tuple[dict[str, StoredTensor], bool]:
    """Return the saved tensors, each of two equal tied ones once, and whether ties end.

    A configuration ties all parameters or none: where two differ, those that nothing has changed are stored twice.
    """
    saved, ties = adapter.saved, _ties(model)
    pairs = {tied: source for tied, source in ties.items() if tied in saved and source in saved}
    if all(torch.equal(read_tensor(saved[tied]), read_tensor(saved[source])) for tied, source in pairs.items()):
        return {name: stored for name, stored in saved.items() if name not in pairs}, False
    stored = _stored_tensors(model, checkpoint)
    return {name: stored[name] for name in {*ties, *ties.values()} if name in stored} | saved, True


def _matches(module: str, names: Iterable[str]) -> bool:
    """Return whether PEFT takes a module for one of these names: it looks at the ends."""
    return any(module.endswith(name) for name in names)


def _stored_tensors(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """Return the checkpoint's tensors by the names of the parameters, those of tied ones under both names."""
    stored = {name: checkpoint.tensors[key] for key, name in checkpoint_key_map(model, checkpoint.tensors).items()}
    for name, tied in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if name not in stored and tied in stored:
            stored[name] = stored[tied]
    return stored


def _draw_fresh(model: PreTrainedModel, module: str, seed: int) -> Mapping[str, Tensor]:
    """Return the state of a new module; the global generator neither decides it nor is moved."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(derive_seed(seed, module))
        fresh = copy.deepcopy(model.get_submodule(module)).to_empty(device="cpu")
        fresh.float().apply(model._init_weights)
    return {f"{module}.{key}": tensor for key, tensor in fresh.state_dict().items()}
