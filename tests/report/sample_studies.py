"""Studies and runs that nobody ran, in real storages and folders."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.trial import TrialState, create_trial

from ailora.library_versions import library_versions
from ailora.recipes.config.yaml_file import format_yaml
from ailora.studies.study_config import load_study_config
from ailora.studies.study_design import StudyDesign
from ailora.studies.trial import Status, Trial, TrialSpec
from ailora.studies.trial_storage import TrialStorage
from tests.studies.sample_trials import Result, outcome, ran

#: What must be shown as it stands.
HOSTILE = "<script>alert(1)</script>"
TEXTS = (HOSTILE, "</script>", '"><img src=x onerror=alert(2)>', "%{x} {{ 7 * 7 }} <b>bold</b> &lt;i&gt; $x_1$")


def study_file(folder: Path, **changes: Any) -> Path:
    """A study file whose output is beside it."""
    base = {
        "recipe": "classification",
        "model": "builtin:minilm",
        "adapter": {"rank": 8, "roles": ["query", "value"]},
        "data": {"train": "a.tsv", "validation": "b.tsv", "test": "c.tsv", "text": ["sentence"]},
    }
    study = {
        "base": base,
        "methods": ["lora", "pissa", "milora", "ailora", "reversed"],
        "learning_rate": {"values": [3e-4, 1e-3, 3e-3]},
        "seeds": [0, 1, 2, 3, 4],
        "output": str(folder / "study"),
    }
    file = folder / "study.yaml"
    file.write_text(format_yaml(study | changes), encoding="utf-8")
    return file


def stored(file: Path, result: Callable[[TrialSpec], Result]) -> tuple[TrialStorage, StudyDesign]:
    """The study of a file with all its trials in a storage, as workers would have left it.

    Args:
        file: From `study_file`.
        result: What becomes of a spec.
    """
    config = load_study_config(file)
    design = StudyDesign(config)
    Path(config.output).mkdir(parents=True)
    assert config.storage
    assert config.name
    storage = TrialStorage.create(config.storage, config.name, config.model_dump(by_alias=True))
    storage._study.add_trials([_frozen(trial) for trial in ran(design, result)])
    return storage, design


def _frozen(trial: Trial) -> Any:
    result = trial.result and trial.result.to_dict()
    kept = {"key": trial.key, "cell": trial.spec.to_dict(), "outcome": result, "error": trial.error}
    value = 0.0 if trial.status is Status.COMPLETE else None
    attributes = {name: found for name, found in kept.items() if found is not None}
    return create_trial(state=TrialState[trial.status.name], value=value, user_attrs=attributes)


def plausible(spec: TrialSpec, *, evaluations: int = 20) -> Result:
    """What a run could have scored: each method has a best rate, and seeds differ."""
    rng = random.Random(f"{spec.condition} {spec.learning_rate} {spec.seed}")
    lift = {"lora": 0.0, "pissa": -0.012, "milora": 0.002, "ailora": 0.016, "reversed": -0.03}
    best = {"lora": -2.9, "pissa": -3.4}.get(spec.condition.method, -3.0)
    rank = spec.condition.values.get("adapter.rank", 8)
    seed = random.Random(spec.seed).gauss(0, 0.008)
    value = 0.8 + lift.get(spec.condition.method, 0.0) + seed + 0.004 * math.log2(rank) + rng.gauss(0, 0.004)
    value -= 0.08 * (math.log10(spec.learning_rate) - best) ** 2
    left = [math.exp(-3 * (i + 1) / evaluations) for i in range(evaluations)]
    losses = [0.7 * share + (1 - value) + rng.gauss(0, 0.005) for share in left]
    result = outcome(value, test=value - 0.01 + rng.gauss(0, 0.003), losses=losses)
    accuracies = [value - 0.3 * math.exp(-4 * (i + 1) / evaluations) + rng.gauss(0, 0.004) for i in range(evaluations)]
    return dataclasses.replace(
        result,
        history=[{**record, "accuracy": one} for record, one in zip(result.history, accuracies, strict=True)],
        init_seconds=rng.uniform(0.2, 0.9),
        train_seconds=rng.uniform(20, 24),
        adapter_bytes=75_000 * rank,
        peak_memory_bytes=int(8.2e8 + rng.uniform(0, 2e7)),
    )


def run_folder(folder: Path, **changes: Any) -> Path:
    """The folder of a finished run.

    Args:
        folder: To make.
        **changes: Of `result.json`; `samples` are written beside it.
    """
    folder.mkdir(parents=True)
    config = {
        "recipe": "classification",
        "model": "builtin:minilm",
        "adapter": {"policy": "ailora", "rank": 8},
        "data": {"train": "a.tsv", "validation": "b.tsv", "text": ["sentence"]},
        "training": {"learning_rate": 3e-3, "seed": 0},
        "output": str(folder),
    }
    history = [
        {"step": 10 * i, "epoch": 0.1 * i, "loss": 0.7 - 0.05 * i, "accuracy": 0.5 + 0.04 * i} for i in range(1, 9)
    ]
    result = {
        "metrics": {"validation": {"loss": 0.3, "accuracy": 0.82}, "test": {"loss": 0.35, "accuracy": 0.8}},
        "best": {"loss": history[-1], "accuracy": history[-1]},
        "history": history,
        "steps": 80,
        "trainable_parameters": 74498,
        "total_parameters": 22_800_000,
        "seed": 0,
        "versions": library_versions(),
        "init_seconds": 0.4,
        "train_seconds": 42.0,
        "peak_memory_bytes": 800 * 2**20,
        "adapter_bytes": 590_000,
    }
    samples = changes.pop("samples", [])
    log = [{"step": 5 * i, "loss": 0.7 - 0.02 * i, "learning_rate": 3e-3 * (1 - i / 17)} for i in range(1, 17)]
    (folder / "config.yaml").write_text(format_yaml(config | changes.pop("config", {})), encoding="utf-8")
    (folder / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in log), encoding="utf-8")
    if samples:
        (folder / "samples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in samples), encoding="utf-8")
    (folder / "result.json").write_text(json.dumps(result | changes), encoding="utf-8")
    return folder
