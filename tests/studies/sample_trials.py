"""Studies that nobody ran: a design, and trials with the results that a test wants."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ailora.studies.study_config import load_study_config
from ailora.studies.study_design import StudyDesign
from ailora.studies.trial import Status, Trial, TrialResult, TrialSpec

#: What came of a trial that is done, the error of one that failed, or what else became of it.
Result = TrialResult | str | Status
#: Steps between evaluations.
EVERY = 10


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few resamples of a bootstrap, and of the importance of choices."""
    monkeypatch.setattr("ailora.studies.bootstrap._N_RESAMPLES", 50)
    monkeypatch.setattr("ailora.studies.rate_certainty._N_EXAMPLE_RESAMPLES", 20)
    monkeypatch.setattr("ailora.studies.choice_importance._RESAMPLES", 2)


def make_design(**changes: Any) -> StudyDesign:
    """Two methods at one learning rate with five seeds; no file needs to exist."""
    base = {
        "recipe": "classification",
        "model": "builtin:minilm",
        "adapter": {"rank": 4},
        "data": {"train": "a.tsv", "validation": "b.tsv", "test": "c.tsv", "text": ["sentence"]},
    }
    study = {
        "base": base,
        "methods": ["lora", "ailora"],
        "learning_rate": {"values": [1e-3]},
        "seeds": [0, 1, 2, 3, 4],
        "output": "out",
    }
    return StudyDesign(load_study_config(study | changes))


def outcome(value: float, *, test: float | None = None, losses: Sequence[float] = (0.5,), **facts: Any) -> TrialResult:
    """Result of a run with one evaluation every ten steps.

    Args:
        value: The accuracy on the validation split.
        test: On the test split; None: the same.
        losses: Of the evaluations on the validation split.
        **facts: Other facts than usual.
    """
    history = [{"step": EVERY * (i + 1), "loss": loss, "accuracy": value} for i, loss in enumerate(losses)]
    last = losses[-1] if losses else 0.5
    result = {
        "metrics": {
            "validation": {"accuracy": value, "loss": last},
            "test": {"accuracy": value if test is None else test, "loss": last},
        },
        "history": history,
        "steps": EVERY * len(losses),
        "trainable_parameters": 1234,
        "total_parameters": 56789,
        "adapter_bytes": 4096,
        "init_seconds": 0.25,
        "train_seconds": 8.0,
        "peak_memory_bytes": 2**28,
        "seconds": 9.0,
        "folder": "out/nowhere",
    }
    return TrialResult.from_dict(result | facts)


def trial(design: StudyDesign, spec: TrialSpec, result: Result, number: int = 0) -> Trial:
    """What the storage would tell of a trial."""
    known = (number, design.keys.key(spec), TrialSpec.from_dict(json.loads(json.dumps(spec.to_dict()))))
    if isinstance(result, TrialResult):
        return Trial(*known, Status.COMPLETE, result=result)
    if isinstance(result, Status):
        return Trial(*known, result, error="pruned at step 10" if result is Status.PRUNED else None)
    return Trial(*known, Status.FAIL, error=result)


def ran(design: StudyDesign, result: Callable[[TrialSpec], Result]) -> list[Trial]:
    """Everything that a study asks for, until it asks for nothing more."""
    trials: dict[TrialSpec, Trial] = {}
    while new := [spec for spec in design.required_trials(trials.values()) if spec not in trials]:
        trials |= {spec: trial(design, spec, result(spec), len(trials) + i) for i, spec in enumerate(new)}
    return list(trials.values())


def predicted(
    folder: Path, split: str, labels: Sequence[str], predictions: Sequence[str], classes: Sequence[str] | None
) -> None:
    """Add a split to the predictions of a run, and the classes of its training data to its result."""
    file = folder / "predictions.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    made = pd.DataFrame({"row": range(len(labels)), "label": labels, "prediction": predictions, "split": split})
    before = [pd.read_parquet(file)] if file.exists() else []
    pd.concat([*before, made]).to_parquet(file, index=False)
    names = None if classes is None else list(classes)
    (folder / "result.json").write_text(json.dumps({"metrics": {}, "best": {}, "labels": names}))
