"""Open the base and the fine-tuned models of an analysis, and validate that the fine-tuned models fit the base."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint
from ailora.adapter_io.peft_config_file import validate_plain
from ailora.analysis.model_weights import BASE_NAME, AdaptedModel, BaseWeights, FinetunedModel, FullModel
from ailora.errors import AiloraError, InputError, ModelError
from ailora.formatting import pluralize
from ailora.model_loading import load_on_meta
from ailora.model_path import model_folder, validate_utf8
from ailora.path_kind import ADAPTER_CONFIG_NAME, PathKind, detect_path_kind, expand_home
from ailora.recipes.run_folder import RunFolder
from ailora.roles import Role, find_projections
from ailora.safetensors_io import Checkpoint
from ailora.weights.checkpoint_keys import match_checkpoint_keys


def load_base(path: Path | str, roles: Sequence[Role], role_names: Mapping[str, str] | None = None) -> BaseWeights:
    """Open the base model.

    Args:
        path: Folder, hub id in the cache, or `builtin:minilm`.
        roles: Roles to analyse.
        role_names: Regular expression -> role, for modules without a naming rule.

    Returns:
        Base model with the projections of `roles`.

    Raises:
        InputError: The model does not exist, or lacks a requested role.
        ModelError: The roles of the modules are unknown, or the weights are quantized.
    """
    folder = model_folder(path)
    model = load_on_meta(str(folder))
    checkpoint = Checkpoint.open(folder)
    checkpoint.validate_digests()
    projections = find_projections(model, role_names=role_names)
    present = dict.fromkeys(p.role.value for p in projections)
    if missing := [role.value for role in roles if role.value not in present]:
        raise InputError(f"{path} has no projection of the role {missing[0]}; it has {', '.join(present)}")
    projections = tuple(p for p in projections if p.role in roles)
    modules = dict.fromkeys(p.module for p in projections)
    keys = match_checkpoint_keys(model, modules, checkpoint.tensors, by_name_only=True)
    stored = {module: checkpoint.tensors[key] for module, key in keys.items()}
    return BaseWeights(str(path), model, projections, stored, role_names=role_names)


def load_finetuned(path: str, name: str, base: BaseWeights) -> FinetunedModel:
    """Open a fine-tuned model.

    Args:
        path: Folder of an adapter, a run of `ailora train` or a model, or a hub id in the cache.
        name: Name of the model in tables and charts.
        base: Base model.

    Returns:
        `AdaptedModel` if the path holds an adapter, else `FullModel`.

    Raises:
        InputError: The path is not UTF-8, or holds no model, adapter or finished run; or the model does not fit the
            base.
        ModelError: The weights are quantized.
    """
    validate_utf8(path)
    folder, kind = expand_home(path), detect_path_kind(path)
    if kind is PathKind.ADAPTER:
        return _load_adapter(AdapterCheckpoint.open(folder), name, base)
    if kind is PathKind.RUN:
        run = RunFolder(folder)
        # These calls raise an error for an unfinished run. Its weights would be missing, or not final.
        run.read_config()
        run.read_result()
        if run.model.is_dir():
            return _load_full(str(run.model), name, base)
        return _load_adapter(AdapterCheckpoint.open(run.adapter), name, base)
    if folder.is_dir() and kind is not PathKind.MODEL:
        raise InputError(
            f"{path} is not a model, adapter or run: there is no config.json, {ADAPTER_CONFIG_NAME} or config.yaml"
        )
    return _load_full(path, name, base)


def _load_full(path: str, name: str, base: BaseWeights) -> FullModel:
    folder = model_folder(path)
    model = load_on_meta(str(folder))
    checkpoint = Checkpoint.open(folder)
    checkpoint.validate_digests()
    try:
        keys = match_checkpoint_keys(base.model, base.modules, checkpoint.tensors)
    except ModelError as error:
        raise InputError(f"{path} does not fit the base {base.path}: {error}") from None
    full = FullModel(name, base, {module: checkpoint.tensors[key] for module, key in keys.items()})
    _validate_same_architecture(model, path, base)
    return full


def _validate_same_architecture(model: nn.Module, path: str, base: BaseWeights) -> None:
    """Validate that the model has as many projections as the base, for each analysed role that both models have."""
    # Comparing tensors is not enough: a model with more layers than the base has all tensors of the base.
    try:
        projections = find_projections(model, role_names=base.role_names)
    except AiloraError as error:
        raise InputError(f"{path} does not fit the base {base.path}: {error}") from None
    counts = Counter(p.role for p in projections)
    base_counts = Counter(p.role for p in base.projections)
    for role, count in base_counts.items():
        if role in counts and counts[role] != count:
            raise InputError(
                f"{path} does not fit the base {base.path}: it has {counts[role]} projections of the role {role}, "
                f"the base has {count}"
            )


def _load_adapter(adapter: AdapterCheckpoint, name: str, base: BaseWeights) -> AdaptedModel:
    validate_plain(adapter.config, adapter.folder)
    mismatch = f"{adapter.folder} does not fit the base {base.path}"
    # DoRA rescales the rows of W + B A, so its update has full rank.
    if adapter.dora:
        raise InputError(
            f"{adapter.folder} is a DoRA, whose update is not low-rank: analyse the merged model (`ailora merge`)"
        )
    adapter.validate_no_residual_base()
    folder = model_folder(base.path)
    # The adapter's task and the base may use different model classes, which give a module different names. So match
    # modules by the name of their tensor in the checkpoint, which both classes share.
    model = load_on_meta(str(folder), adapter.task_type, any_class=True)
    tensors = Checkpoint.open(folder).tensors
    try:
        keys = match_checkpoint_keys(model, adapter.modules, tensors, by_name_only=True)
    except ModelError as error:
        raise InputError(f"{mismatch}: {error}") from None
    base_modules = {tensor.name: module for module, tensor in base.stored.items()}
    modules = {base_modules[key]: adapter.modules[module] for module, key in keys.items() if key in base_modules}
    for module, lora in modules.items():
        expected = base.module_shape(module)
        if lora.shape != expected:
            raise InputError(f"{mismatch}: shape must be {expected}, got {lora.shape} ({lora.module})")
    if not modules:
        roles = ", ".join(dict.fromkeys(p.role.value for p in base.projections))
        raise InputError(f"{adapter.folder} adapts no projection of the roles to analyse: {roles}")
    adapted = AdaptedModel(name, base, adapter, modules)
    if left_out := len(adapter.modules) - len(modules):
        adapted.notes.append(
            f"{name}: left out {pluralize(left_out, 'adapted module')} with roles that are not analysed"
        )
    if adapter.metadata is None:
        adapted.notes.append(f"{name} does not record its base weights: this base is assumed")
    return adapted


def unique_names(paths: Sequence[Path | str]) -> list[str]:
    """Name each path by the fewest last components that make the name unique and different from `base`.

    Args:
        paths: Folders, hub ids or `builtin:` models.

    Returns:
        Names in the order of the paths.

    Raises:
        InputError: A path is given twice.
    """
    parts = [_path_parts(str(path)) for path in paths]
    for path, path_parts in zip(paths, parts, strict=True):
        if parts.count(path_parts) > 1:
            raise InputError(f"{path} is given twice")
    lengths = [1] * len(parts)
    while True:
        names = ["/".join(path_parts[-length:]) for path_parts, length in zip(parts, lengths, strict=True)]
        ambiguous = [i for i, name in enumerate(names) if names.count(name) > 1 or name == BASE_NAME]
        extensible = [i for i in ambiguous if lengths[i] < len(parts[i])]
        if not extensible:
            # Only the path `/base` can still be ambiguous, because it has no further component.
            return [f"/{name}" if name == BASE_NAME else name for name in names]
        for i in extensible:
            lengths[i] += 1


def _path_parts(path: str) -> tuple[str, ...]:
    if path.startswith("builtin:"):
        return ("builtin", path.removeprefix("builtin:"))
    return tuple(part for part in Path(os.path.abspath(expand_home(path))).parts if part not in ("/", ""))
