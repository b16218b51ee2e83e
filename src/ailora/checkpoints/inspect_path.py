"""`ailora inspect`: measure an adapter, a run or a model."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm.auto import tqdm

from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint
from ailora.adapter_io.update_norms import UpdateStats, compute_singular_values, compute_update_stats, root_mean_square
from ailora.atomic_io import restore_non_finite
from ailora.checkpoints.output_dir import validate_finished
from ailora.errors import InputError
from ailora.formatting import collapse_layer_index
from ailora.model_loading import load_on_meta
from ailora.model_path import model_folder
from ailora.path_kind import PathKind, detect_path_kind, expand_home, is_folder
from ailora.plain_data import read_json_object
from ailora.plan.adapter_plan import Form, Plan
from ailora.roles import find_projections
from ailora.safetensors_io import Checkpoint
from ailora.weights.checkpoint_keys import match_checkpoint_keys

#: Largest number of singular values in a summary.
_MAX_VALUES = 4


@dataclass(frozen=True)
class RoleSummary:
    """Summary of all adapters of a role. Values of type float are root mean squares over the modules.

    Attributes:
        role: Name of the role, such as query. For a stock or exported adapter, the module name with a star for the
            layer number.
        start: Name of the init. Empty if unknown.
        modules: Number of modules.
        rank: Ranks of the stored factors, joined by commas.
        scaling: Scalings of the stored factors, joined by commas.
        anchor: Norm of the anchor, `|s B0 A0|`. None without an anchor.
        update: Norm of the update, `|dW|`.
        moved_A: Relative change of `A`, `|dA| / |A0|`. None without an anchor.
        moved_B: Relative change of `B`, `|dB| / |B0|`. None without an anchor.
        stable_rank: Stable rank of the update, `|dW|^2 / |dW|_2^2`.
        values: Largest singular values of `dW`, at most four.
    """

    role: str
    start: str
    modules: int
    rank: str
    scaling: str
    anchor: float | None
    update: float
    moved_A: float | None
    moved_B: float | None
    stable_rank: float
    values: tuple[float, ...]


def inspect(path: str) -> dict[str, object]:
    """Measure an adapter, a run or a model.

    Args:
        path: Folder of an adapter or of a run; or a model: a folder, a hub id in the cache, or `builtin:minilm`.

    Returns:
        Plain data; `kind` is `adapter`, `run` or `model`.

    Raises:
        InputError: The path is no adapter, run or model, or is unfinished, or a file is damaged.
        ModelError: The model has no naming rule, or its weights are missing.
    """
    folder, kind = expand_home(path), detect_path_kind(path)
    _validate_finished(folder, kind)
    if kind is PathKind.ADAPTER:
        return {"kind": "adapter", **_inspect_adapter(AdapterCheckpoint.open(folder))}
    if kind is PathKind.RUN:
        # Full fine-tuning writes a model instead of an adapter.
        trained_model = folder / "model"
        facts = (
            _inspect_model(str(trained_model))
            if trained_model.is_dir()
            else _inspect_adapter(AdapterCheckpoint.open(folder))
        )
        return {**facts, "kind": "run", **_read_metrics(folder / "result.json")}
    if kind in (PathKind.ANALYSIS, PathKind.STUDY):
        raise InputError(f"{path} holds {kind} files instead of an adapter, run or model: `ailora report` shows them")
    return {"kind": "model", **_inspect_model(path)}


def _validate_finished(folder: Path, kind: PathKind | None) -> None:
    """Refuse an unfinished folder, and a folder without an adapter, run or model."""
    # Hub ids and `builtin:minilm` are not folders.
    if not is_folder(folder):
        return
    validate_finished(folder)
    if kind is PathKind.RUN and not any((folder / name).is_dir() for name in ("adapter", "model")):
        command = shlex.join(["ailora", "train", str(folder / "config.yaml")])
        raise InputError(
            f"{folder} is a run that has not finished: `{command}` continues it, `ailora report` shows its progress"
        )
    if kind is None:
        raise InputError(f"{folder} holds no adapter (adapter_config.json), run (config.yaml) or model (config.json)")


def _inspect_adapter(adapter: AdapterCheckpoint) -> dict[str, object]:
    plan = adapter.plan
    metadata = adapter.metadata
    lines = _summarize_roles(adapter, plan) if plan and not adapter.exported else _summarize_modules(adapter)
    return {
        "folder": str(adapter.folder),
        "base_model": adapter.config.get("base_model_name_or_path"),
        "task_type": adapter.task_type,
        "policy": plan.policy.name if plan else None,
        "form": plan.form.value if plan else None,
        "exported": metadata.exported.model_dump() if metadata and metadata.exported else None,
        "on_residual_weights": adapter.targets_residual_base,
        "anchor_inside": bool(plan and not adapter.exported and adapter.contains_anchor(plan)),
        "trained_whole": _is_anchor_trained(adapter, plan),
        "saved_modules": sorted(adapter.saved),
        "max_lora_rank": max(module.rank for module in adapter.modules.values()),
        "versions": metadata.versions if metadata else {},
        "lines": [asdict(line) for line in lines],
    }


def _is_anchor_trained(adapter: AdapterCheckpoint, plan: Plan | None) -> bool | None:
    """Return whether training without ailora has changed an anchor. None for an adapter without a frozen anchor."""
    if plan is None or plan.form is not Form.ANCHORED or adapter.exported:
        return None
    return any(factors.anchor_was_trained for factors in adapter.read_projection_factors(plan))


@dataclass(frozen=True)
class _ModuleStats:
    """Statistics of an update, for a module or for a role of a fused module.

    Attributes:
        update: Norms and singular values of the update.
        rank: Rank of the stored factors.
        scaling: Scaling of the stored factors.
    """

    update: UpdateStats
    rank: int
    scaling: float


def _summarize_roles(adapter: AdapterCheckpoint, plan: Plan) -> Iterator[RoleSummary]:
    """Summarize an adapter made by ailora, by role and init."""
    groups: dict[tuple[str, str], list[_ModuleStats]] = {}
    stored = adapter.read_projection_factors(plan)
    for factors in tqdm(stored, "measuring", len(plan.adapters), unit="matrix", leave=False, disable=None):
        planned = factors.planned
        start = ", ".join(planned.init.to_dict().values())
        stats = _ModuleStats(compute_update_stats(factors), factors.A.shape[0], planned.scaling)
        groups.setdefault((planned.projection.role.value, start), []).append(stats)
    for (role, start), modules in groups.items():
        yield _summarize(role, start, modules)


def _summarize_modules(adapter: AdapterCheckpoint) -> Iterator[RoleSummary]:
    """Summarize a stock or exported adapter by module name, with a star for the layer number."""
    groups: dict[str, list[_ModuleStats]] = {}
    for weights in tqdm(adapter.modules.values(), "measuring", unit="matrix", leave=False, disable=None):
        A, B = weights.read_factors()
        values = (weights.scaling * compute_singular_values(B, A)).tolist()
        norm = sum(value**2 for value in values) ** 0.5
        stats = _ModuleStats(UpdateStats(norm, None, None, None, tuple(values)), weights.rank, weights.scaling)
        groups.setdefault(collapse_layer_index(weights.module), []).append(stats)
    for name, modules in groups.items():
        yield _summarize(name, "", modules)


def _summarize(role: str, start: str, modules: list[_ModuleStats]) -> RoleSummary:
    updates = [module.update for module in modules]

    def rms_if_known(values: list[float | None]) -> float | None:
        numbers = [value for value in values if value is not None]
        return root_mean_square(numbers) if numbers else None

    # Modules of different ranks have different numbers of singular values. The mean needs a value from every module.
    count = min(_MAX_VALUES, *(len(update.singular_values) for update in updates))
    return RoleSummary(
        role=role,
        start=start,
        modules=len(modules),
        rank=", ".join(map(str, sorted({module.rank for module in modules}))),
        scaling=", ".join(f"{scaling:g}" for scaling in sorted({module.scaling for module in modules})),
        anchor=rms_if_known([update.anchor_norm for update in updates]),
        update=root_mean_square(update.norm for update in updates),
        moved_A=rms_if_known([update.moved_A for update in updates]),
        moved_B=rms_if_known([update.moved_B for update in updates]),
        stable_rank=root_mean_square(update.stable_rank for update in updates),
        values=tuple(root_mean_square(update.singular_values[i] for update in updates) for i in range(count)),
    )


def _read_metrics(file: Path) -> dict[str, object]:
    # `exists` would also accept a named pipe, and reading a named pipe would wait forever for a writer.
    if not file.is_file():
        return {"metrics": None}
    try:
        return {"metrics": restore_non_finite(read_json_object(file, allow_nan=True).get("metrics"))}
    except InputError as error:
        raise InputError(f"{file} is damaged: {error}") from None


def _inspect_model(name: str) -> dict[str, object]:
    folder = model_folder(name)
    model = load_on_meta(str(folder))
    checkpoint = Checkpoint.open(folder)
    checkpoint.validate_digests()
    projections = find_projections(model)
    stored = match_checkpoint_keys(model, {p.module for p in projections}, checkpoint.tensors, by_name_only=True)
    groups: dict[tuple[str, str, str], list[int]] = {}
    for p in projections:
        tensor = checkpoint.tensors[stored[p.module]]
        key = (p.role.value, f"{p.out_features} x {p.in_features}", tensor.dtype)
        # Of a fused weight, count the bytes in the rows of the role.
        groups.setdefault(key, []).append(tensor.nbytes * p.out_features // p.shape[0])
    return {
        "folder": str(checkpoint.folder),
        "class": type(model).__name__,
        "model_type": model.config.model_type,
        "tensors": len(checkpoint.tensors),
        "bytes": checkpoint.nbytes,
        "shards": len(checkpoint.headers),
        "roles": [
            {"role": role, "shape": shape, "dtype": dtype, "modules": len(sizes), "bytes": sum(sizes)}
            for (role, shape, dtype), sizes in groups.items()
        ],
    }
