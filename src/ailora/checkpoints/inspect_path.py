"""`ailora inspect`: what an adapter, a run or a model is, in numbers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm.auto import tqdm

from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint
from ailora.adapter_io.update_norms import Measured, measured, root_mean_square, spectrum
from ailora.checkpoints.output_dir import validate_finished
from ailora.errors import InputError
from ailora.formatting import collapse_layer_index
from ailora.model_loading import load_on_meta
from ailora.model_path import model_folder
from ailora.path_kind import PathKind, detect_path_kind, is_folder
from ailora.plain_data import read_json_object
from ailora.plan.adapter_plan import Plan
from ailora.roles import find_projections
from ailora.safetensors_io import Checkpoint
from ailora.weights.checkpoint_keys import match_checkpoint_keys

#: Singular values of an update that are shown.
_MAX_VALUES = 4


@dataclass(frozen=True)
class Line:
    """Summary of the adapters of one role, each number the root mean square over them.

    Attributes:
        role: query, value, ...; of an adapter that is not ours, the module's name with a star for its layer.
        start: The init's words; empty where it is not known.
        modules: How many there are.
        rank: The ranks in the file.
        scaling: The scalings.
        anchor: `|s B0 A0|`.
        update: `|dW|`.
        moved_A: `|dA| / |A0|`.
        moved_B: `|dB| / |B0|`.
        stable_rank: `|dW|^2 / |dW|_2^2`.
        values: The largest singular values of `dW`.
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
        path: The folder of an adapter or of a run; or a model: a folder, a hub id in the cache, `builtin:minilm`.

    Returns:
        Plain data; `kind` is `adapter`, `run` or `model`.

    Raises:
        InputError, ModelError: None of these, or it cannot be read.
    """
    folder, kind = Path(path).expanduser(), detect_path_kind(path)
    _validate_finished(folder, kind)
    if kind is PathKind.ADAPTER:
        return {"kind": "adapter", **_adapter(AdapterCheckpoint.open(folder))}
    if kind is PathKind.RUN:
        trained_model = folder / "model"
        facts = _model(str(trained_model)) if trained_model.is_dir() else _adapter(AdapterCheckpoint.open(folder))
        return {**facts, "kind": "run", **_result(folder / "result.json")}
    if kind in (PathKind.ANALYSIS, PathKind.STUDY):
        raise InputError(f"{path} is no adapter, run or model: it holds {kind} files, which `ailora report` shows")
    return {"kind": "model", **_model(path)}


def _validate_finished(folder: Path, kind: PathKind | None) -> None:
    """Refuse a folder whose command was cut short, and one that holds nothing to inspect."""
    if not is_folder(folder):
        return
    validate_finished(folder)
    if kind is PathKind.RUN and not any((folder / name).is_dir() for name in ("adapter", "model")):
        command = shlex.join(["ailora", "train", str(folder / "config.yaml")])
        raise InputError(
            f"{folder} is a run that has not finished: `{command}` continues it, `ailora report` shows how far it is"
        )
    if kind is None:
        raise InputError(
            f"{folder} is none of an adapter (it would hold adapter_config.json), a run (config.yaml) and a model "
            "(config.json)"
        )


def _adapter(adapter: AdapterCheckpoint) -> dict[str, object]:
    plan = adapter.plan
    metadata = adapter.metadata
    lines = _lines_of_plan(adapter, plan) if plan and not adapter.exported else _lines_of_files(adapter)
    return {
        "folder": str(adapter.folder),
        "base_model": adapter.config.get("base_model_name_or_path"),
        "task_type": adapter.task_type,
        "policy": plan.policy.name if plan else None,
        "form": plan.form.value if plan else None,
        "exported": metadata.exported.model_dump() if metadata and metadata.exported else None,
        "on_residual_weights": adapter.targets_residual_base,
        "anchor_inside": bool(plan and not adapter.exported and adapter.contains_anchor(plan)),
        "trained_whole": _trained_whole(adapter, plan),
        "saved_modules": sorted(adapter.saved),
        "max_lora_rank": max(module.rank for module in adapter.modules.values()),
        "versions": metadata.versions if metadata else {},
        "lines": [asdict(line) for line in lines],
    }


def _trained_whole(adapter: AdapterCheckpoint, plan: Plan | None) -> bool | None:
    if plan is None or plan.form.value != "anchored" or adapter.exported:
        return None
    return any(role.anchor_was_trained for role in adapter.projection_factors(plan))


def _lines_of_plan(adapter: AdapterCheckpoint, plan: Plan) -> Iterator[Line]:
    groups: dict[tuple[str, str], list[tuple[Measured, int, float]]] = {}
    roles = adapter.projection_factors(plan)
    for role in tqdm(roles, "measuring", len(plan.adapters), unit="matrix", leave=False, disable=None):
        planned = role.planned
        key = (planned.projection.role.value, ", ".join(planned.init.to_dict().values()))
        groups.setdefault(key, []).append((measured(role), role.A.shape[0], planned.scaling))
    for (role, start), found in groups.items():
        yield _line(role, start, found)


def _lines_of_files(adapter: AdapterCheckpoint) -> Iterator[Line]:
    groups: dict[str, list[tuple[Measured, int, float]]] = {}
    for module in tqdm(adapter.modules.values(), "measuring", unit="matrix", leave=False, disable=None):
        A, B = module.factors()
        values = (module.scaling * spectrum(B, A)).tolist()
        update = sum(value**2 for value in values) ** 0.5
        numbers = Measured(update, None, None, None, tuple(values))
        groups.setdefault(collapse_layer_index(module.module), []).append((numbers, module.rank, module.scaling))
    for name, found in groups.items():
        yield _line(name, "", found)


def _line(role: str, start: str, found: list[tuple[Measured, int, float]]) -> Line:
    numbers = [measured for measured, _, _ in found]

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return root_mean_square(known) if known else None

    shown = min(_MAX_VALUES, *(len(m.values) for m in numbers))
    return Line(
        role=role,
        start=start,
        modules=len(found),
        rank=", ".join(map(str, sorted({rank for _, rank, _ in found}))),
        scaling=", ".join(f"{scaling:g}" for scaling in sorted({scaling for _, _, scaling in found})),
        anchor=mean([m.start for m in numbers]),
        update=root_mean_square(m.update for m in numbers),
        moved_A=mean([m.moved_A for m in numbers]),
        moved_B=mean([m.moved_B for m in numbers]),
        stable_rank=root_mean_square(m.stable_rank for m in numbers),
        values=tuple(root_mean_square(m.values[i] for m in numbers) for i in range(shown)),
    )


def _result(file: Path) -> dict[str, object]:
    if not file.is_file():
        return {"metrics": None}
    try:
        return {"metrics": read_json_object(file, allow_nan=True).get("metrics")}
    except InputError as error:
        raise InputError(f"{file} is damaged: {error}") from None


def _model(name: str) -> dict[str, object]:
    folder = model_folder(name)
    model = load_on_meta(str(folder))
    checkpoint = Checkpoint.open(folder)
    projections = find_projections(model)
    stored = match_checkpoint_keys(model, {p.module for p in projections}, checkpoint.tensors, by_name_only=True)
    groups: dict[tuple[str, str, str], list[int]] = {}
    for p in projections:
        tensor = checkpoint.tensors[stored[p.module]]
        key = (p.role.value, f"{p.out_features} x {p.in_features}", tensor.dtype)
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
