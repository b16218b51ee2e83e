"""Open the models of an analysis: what each path is, and whether it fits the base. Reads headers alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint
from ailora.adapter_io.peft_config_file import validate_plain
from ailora.analysis.analysis_settings import Settings
from ailora.analysis.model_weights import Adapted, After, Base, Full
from ailora.errors import InputError, ModelError
from ailora.model_loading import load_on_meta, model_folder
from ailora.path_kind import ADAPTER_CONFIG_NAME, PathKind, detect_path_kind
from ailora.recipes.run_folder import RunFolder
from ailora.roles import find_projections
from ailora.safetensors_io import Checkpoint
from ailora.weights.checkpoint_keys import match_checkpoint_keys

#: What a model of this name would be taken for.
BASE_NAME = "base"


def open_base(name: str, settings: Settings, role_names: Mapping[str, str] | None = None) -> Base:
    """The base model.

    Args:
        name: a folder, a hub id in the cache, or `builtin:minilm`.
        settings: which roles are looked at.
        role_names: as `find_projections`.

    Raises:
        InputError, ModelError: no such model, one whose roles nobody knows, one without the roles that were asked for,
            or one whose weights are quantized.
    """
    folder = model_folder(name)
    model = load_on_meta(str(folder))
    checkpoint = Checkpoint.open(folder)
    found = find_projections(model, role_names=role_names)
    wanted = tuple(p for p in found if p.role in settings.roles)
    missing = [role.value for role in settings.roles if role not in {p.role for p in wanted}]
    if missing:
        there = ", ".join(dict.fromkeys(p.role.value for p in found))
        raise InputError(f"{name} has no projection of the role {missing[0]}; it has {there}")
    names = match_checkpoint_keys(model, dict.fromkeys(p.module for p in wanted), checkpoint.tensors, by_name_only=True)
    return Base(model, wanted, {module: checkpoint.tensors[tensor] for module, tensor in names.items()})


def open_after(path: str, name: str, base: Base, base_path: str) -> After:
    """A model that was made of the base.

    Args:
        path: the folder of an adapter, of a run of `ailora train`, or of a model; or a model as `open_base` takes it.
        name: what it is called.
        base: the base.
        base_path: the base as it was named.

    Raises:
        InputError, ModelError: none of these, a run that has not finished, or one that does not fit the base.
    """
    folder, kind = Path(path).expanduser(), detect_path_kind(path)
    if kind is PathKind.ADAPTER:
        return _adapter(AdapterCheckpoint.open(folder), name, base, base_path)
    if kind is PathKind.RUN:
        run = RunFolder(folder)
        run.read_config()
        run.read_result()
        if run.model.is_dir():
            return _full(str(run.model), name, base, base_path)
        return _adapter(AdapterCheckpoint.open(run.adapter), name, base, base_path)
    if folder.is_dir() and kind is not PathKind.MODEL:
        raise InputError(
            f"{path} is no model, adapter or run: it has no config.json, no {ADAPTER_CONFIG_NAME} and no config.yaml"
        )
    return _full(path, name, base, base_path)


def _full(path: str, name: str, base: Base, base_path: str) -> Full:
    folder = model_folder(path)
    model = load_on_meta(str(folder))
    checkpoint = Checkpoint.open(folder)
    try:
        names = match_checkpoint_keys(base.model, base.modules, checkpoint.tensors)
    except ModelError as error:
        raise InputError(f"{path} does not fit the base {base_path}: {error}") from None
    full = Full(name, base, {module: checkpoint.tensors[tensor] for module, tensor in names.items()})
    _validate_same_architecture(model, path, base, base_path)
    return full


def _validate_same_architecture(model: nn.Module, path: str, base: Base, base_path: str) -> None:
    """A model with more layers than the base would fit it tensor by tensor."""
    theirs = Counter(p.role for p in find_projections(model))
    ours = Counter(p.role for p in base.projections)
    for role, count in ours.items():
        if role in theirs and theirs[role] != count:
            raise InputError(
                f"{path} does not fit the base {base_path}: it has {theirs[role]} projections of the role {role}, "
                f"the base has {count}"
            )


def _adapter(filed: AdapterCheckpoint, name: str, base: Base, base_path: str) -> Adapted:
    validate_plain(filed.config, filed.folder)
    where = f"{filed.folder} does not fit the base {base_path}"
    if filed.dora:
        raise InputError(
            f"{filed.folder} is a DoRA, whose update is no product: analyse the merged model (`ailora merge`)"
        )
    filed.validate_untouched_base()
    folder = model_folder(base_path)
    model = load_on_meta(str(folder), filed.task_type, any_class=True)
    tensors = Checkpoint.open(folder).tensors
    try:
        names = match_checkpoint_keys(model, filed.modules, tensors, by_name_only=True)
    except ModelError as error:
        raise InputError(f"{where}: {error}") from None
    own = {tensor.name: module for module, tensor in base.stored.items()}
    modules = {}
    for module, tensor in names.items():
        found = filed.modules[module]
        if tensor not in own:
            continue
        expected = next(p.shape for p in base.projections if p.module == own[tensor])
        if found.shape != expected:
            raise InputError(f"{where}: it maps {found.shape} at {module}, whose weight is {expected}")
        modules[own[tensor]] = found
    if not modules:
        roles = ", ".join(dict.fromkeys(p.role.value for p in base.projections))
        raise InputError(f"{filed.folder} adapts no projection of the roles that are looked at: {roles}")
    adapted = Adapted(name, base, filed, modules)
    if others := len(filed.modules) - len(modules):
        adapted.notes.append(f"{name} adapts {others} more modules, of other roles")
    if filed.metadata is None:
        adapted.notes.append(f"{name} does not say which weights it was made from: it is taken to be of this base")
    return adapted


def names_of(paths: Sequence[str]) -> list[str]:
    """A name for each path: its last part, with as many of those before as tell it from the others and from the base.

    Raises:
        InputError: a path is given twice.
    """
    parts = [_parts(path) for path in paths]
    for path, own in zip(paths, parts, strict=True):
        if parts.count(own) > 1:
            raise InputError(f"{path} is given twice")
    shown = [1] * len(parts)
    while True:
        names = ["/".join(own[-count:]) for own, count in zip(parts, shown, strict=True)]
        alike = [i for i, name in enumerate(names) if names.count(name) > 1 or name == BASE_NAME]
        longer = [i for i in alike if shown[i] < len(parts[i])]
        if not longer:
            return names
        for i in longer:
            shown[i] += 1


def _parts(path: str) -> tuple[str, ...]:
    if path.startswith("builtin:"):
        return ("builtin", path.removeprefix("builtin:"))
    return tuple(part for part in Path(os.path.abspath(Path(path).expanduser())).parts if part not in ("/", ""))
