"""Open the models of an analysis and validate that they fit the base. Reads headers only."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint
from ailora.adapter_io.peft_config_file import validate_plain
from ailora.analysis.model_weights import BASE_NAME, AdaptedModel, BaseWeights, FinetunedModel, FullModel
from ailora.errors import InputError, ModelError
from ailora.model_loading import load_on_meta, model_folder
from ailora.path_kind import ADAPTER_CONFIG_NAME, PathKind, detect_path_kind
from ailora.recipes.run_folder import RunFolder
from ailora.roles import Role, find_projections
from ailora.safetensors_io import Checkpoint
from ailora.weights.checkpoint_keys import match_checkpoint_keys


def load_base(name: str, roles: Sequence[Role], role_names: Mapping[str, str] | None = None) -> BaseWeights:
    """Open the base model.

    Args:
        name: a folder, a hub id in the cache, or `builtin:minilm`.
        roles: the roles to analyse.
        role_names: See `find_projections`.

    Raises:
        InputError, ModelError: There is no such model, its roles are unknown, it lacks a role that was asked for, or
            its weights are quantized.
    """
    folder = model_folder(name)
    model = load_on_meta(str(folder))
    checkpoint = Checkpoint.open(folder)
    projections = find_projections(model, role_names=role_names)
    present = dict.fromkeys(p.role.value for p in projections)
    if missing := [role.value for role in roles if role.value not in present]:
        raise InputError(f"{name} has no projection of the role {missing[0]}; it has {', '.join(present)}")
    wanted = tuple(p for p in projections if p.role in roles)
    names = match_checkpoint_keys(model, dict.fromkeys(p.module for p in wanted), checkpoint.tensors, by_name_only=True)
    return BaseWeights(name, model, wanted, {module: checkpoint.tensors[tensor] for module, tensor in names.items()})


def load_finetuned(path: str, name: str, base: BaseWeights) -> FinetunedModel:
    """Open a model that was fine-tuned from the base.

    Args:
        path: the folder of an adapter, of a run of `ailora train`, or of a model; or a model as `load_base` takes it.
        name: as tables and charts call it.
        base: the base.

    Raises:
        InputError, ModelError: The path holds none of these, or a run that has not finished, or does not fit the base.
    """
    folder, kind = Path(path).expanduser(), detect_path_kind(path)
    if kind is PathKind.ADAPTER:
        return _adapter(AdapterCheckpoint.open(folder), name, base)
    if kind is PathKind.RUN:
        run = RunFolder(folder)
        run.read_config()
        run.read_result()
        if run.model.is_dir():
            return _full(str(run.model), name, base)
        return _adapter(AdapterCheckpoint.open(run.adapter), name, base)
    if folder.is_dir() and kind is not PathKind.MODEL:
        raise InputError(
            f"{path} is no model, adapter or run: it has no config.json, no {ADAPTER_CONFIG_NAME} and no config.yaml"
        )
    return _full(path, name, base)


def _full(path: str, name: str, base: BaseWeights) -> FullModel:
    folder = model_folder(path)
    model = load_on_meta(str(folder))
    checkpoint = Checkpoint.open(folder)
    try:
        names = match_checkpoint_keys(base.model, base.modules, checkpoint.tensors)
    except ModelError as error:
        raise InputError(f"{path} does not fit the base {base.path}: {error}") from None
    full = FullModel(name, base, {module: checkpoint.tensors[tensor] for module, tensor in names.items()})
    _validate_same_architecture(model, path, base)
    return full


def _validate_same_architecture(model: nn.Module, path: str, base: BaseWeights) -> None:
    """A model with more layers than the base would fit it tensor by tensor."""
    theirs = Counter(p.role for p in find_projections(model))
    ours = Counter(p.role for p in base.projections)
    for role, count in ours.items():
        if role in theirs and theirs[role] != count:
            raise InputError(
                f"{path} does not fit the base {base.path}: it has {theirs[role]} projections of the role {role}, "
                f"the base has {count}"
            )


def _adapter(adapter: AdapterCheckpoint, name: str, base: BaseWeights) -> AdaptedModel:
    validate_plain(adapter.config, adapter.folder)
    where = f"{adapter.folder} does not fit the base {base.path}"
    if adapter.dora:
        raise InputError(
            f"{adapter.folder} is a DoRA, whose update is no product: analyse the merged model (`ailora merge`)"
        )
    adapter.validate_untouched_base()
    folder = model_folder(base.path)
    model = load_on_meta(str(folder), adapter.task_type, any_class=True)
    tensors = Checkpoint.open(folder).tensors
    try:
        names = match_checkpoint_keys(model, adapter.modules, tensors, by_name_only=True)
    except ModelError as error:
        raise InputError(f"{where}: {error}") from None
    base_modules = {tensor.name: module for module, tensor in base.stored.items()}
    modules = {
        base_modules[tensor]: adapter.modules[module] for module, tensor in names.items() if tensor in base_modules
    }
    for module, lora in modules.items():
        expected = base.module_shape(module)
        if lora.shape != expected:
            raise InputError(f"{where}: it maps {lora.shape} at {lora.module}, whose weight is {expected}")
    if not modules:
        roles = ", ".join(dict.fromkeys(p.role.value for p in base.projections))
        raise InputError(f"{adapter.folder} adapts no projection of the roles to analyse: {roles}")
    adapted = AdaptedModel(name, base, adapter, modules)
    if others := len(adapter.modules) - len(modules):
        adapted.notes.append(f"{name} adapts {others} more modules, of other roles")
    if adapter.metadata is None:
        adapted.notes.append(f"{name} does not say which weights it was made from: it is taken to be of this base")
    return adapted


def unique_names(paths: Sequence[Path | str]) -> list[str]:
    """Name each path by its last part, with as many of those before as tell it from the others and from the base.

    Raises:
        InputError: A path is given twice.
    """
    parts = [_parts(str(path)) for path in paths]
    for path, own in zip(paths, parts, strict=True):
        if parts.count(own) > 1:
            raise InputError(f"{path} is given twice")
    lengths = [1] * len(parts)
    while True:
        names = ["/".join(own[-length:]) for own, length in zip(parts, lengths, strict=True)]
        ambiguous = [i for i, name in enumerate(names) if names.count(name) > 1 or name == BASE_NAME]
        extensible = [i for i in ambiguous if lengths[i] < len(parts[i])]
        if not extensible:
            return names
        for i in extensible:
            lengths[i] += 1


def _parts(path: str) -> tuple[str, ...]:
    if path.startswith("builtin:"):
        return ("builtin", path.removeprefix("builtin:"))
    return tuple(part for part in Path(os.path.abspath(Path(path).expanduser())).parts if part not in ("/", ""))
