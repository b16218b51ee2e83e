"""Trials of the paper's studies as JSON in `results/studies`, so that pages can be written without the run folders."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import RESULTS, describe

from ailora.report.inputs import find_studies
from ailora.report.trial_selection import select_trials
from ailora.studies.comparison import Comparison, compare
from ailora.studies.rate_certainty import RateCertainty, Resampled
from ailora.studies.statistics import Interval
from ailora.studies.study_design import StudyDesign
from ailora.studies.trial import Condition, Status, Trial, TrialResult, TrialSpec

FOLDER = RESULTS / "studies"
_DIGITS = 6


@dataclass(frozen=True)
class StudyRecord:
    """Trials of a study, as recorded.

    Attributes:
        machine: Description of the machine that ran the study: `machine.json` in its folder, or the machine that
            recorded it.
        baseline: Label of the baseline of `bootstrap`.
        trials: Ended trials, and missing trials with the status waiting.
        bootstrap: Condition -> interval of the difference to the baseline over seeds and examples. It is computed from
            predictions, which only the run folders hold.
        rate_certainties: Condition -> certainty of its best rate, from the same predictions.
    """

    machine: dict[str, Any]
    baseline: str
    trials: list[Trial]
    bootstrap: dict[Condition, Interval]
    rate_certainties: dict[Condition, RateCertainty]

    def compare(self, design: StudyDesign) -> Comparison:
        """Compare the methods of a design. Its baseline may differ from the baseline of the recorded study."""
        conditions = {*design.conditions}
        trials = [trial for trial in self.trials if trial.spec.condition in conditions]
        comparison = compare(trials, design, bootstrap=False)
        certainties = comparison.rate_certainties | {
            condition: certainty for condition, certainty in self.rate_certainties.items() if condition in conditions
        }
        comparison = dataclasses.replace(comparison, rate_certainties=certainties)
        if design.baseline != self.baseline:
            return comparison
        against = {
            condition: dataclasses.replace(of_condition, bootstrap=self.bootstrap.get(condition))
            for condition, of_condition in comparison.against_baseline.items()
        }
        return dataclasses.replace(comparison, against_baseline=against)


def record_study(folder: Path) -> str:
    """Write the trials of a study's folder, finished or not, to `results/studies`.

    Args:
        folder: Output folder of the study.

    Returns:
        Name of the study, and of the file without its suffix.
    """
    (load,) = find_studies(folder, None)
    storage, design = load()
    try:
        selection = select_trials(storage.trials(), design)
        done = {trial.spec: trial for trial in selection.trials if trial.ended}
        missing = [spec for spec in design.required_trials(selection.trials) if spec not in done]
        comparison = compare(selection.trials, design)
        data = {
            "machine": read_machine(folder),
            "baseline": design.baseline,
            "trials": [_trial_to_dict(trial) for trial in done.values()]
            + [{"spec": spec.to_dict(), "status": Status.WAITING.value} for spec in missing],
            "bootstrap": [
                _condition_to_dict(condition) | dataclasses.asdict(against.bootstrap)
                for condition, against in comparison.against_baseline.items()
                if against.bootstrap is not None
            ],
            "rate_certainties": [
                _condition_to_dict(condition) | {"best": certainty.best} | certainty.to_dict()
                for condition, certainty in comparison.rate_certainties.items()
            ],
        }
    finally:
        storage.close()
    FOLDER.mkdir(parents=True, exist_ok=True)
    lines = json.dumps(_rounded(data), indent=1)
    (FOLDER / f"{storage.name}.json").write_text(lines + "\n", encoding="utf-8")
    return storage.name


def read_machine(folder: Path) -> dict[str, Any]:
    """Return the description of the machine that ran a study: `machine.json` in its folder, or this machine."""
    file = folder / "machine.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else describe()


def read_record(name: str) -> StudyRecord | None:
    """Read the record of a study. Returns None without a record."""
    file = FOLDER / f"{name}.json"
    if not file.exists():
        return None
    data = json.loads(file.read_text(encoding="utf-8"))
    trials = [
        Trial(
            number=number,
            key="",
            spec=TrialSpec.from_dict(item["spec"]),
            status=Status(item["status"]),
            result=TrialResult.from_dict(item["result"]) if "result" in item else None,
            error=item.get("error"),
        )
        for number, item in enumerate(data["trials"])
    ]
    bootstrap = {
        Condition.from_values(item["task"], item["method"], item["setting"]): Interval(
            item["mean"], item["low"], item["high"]
        )
        for item in data["bootstrap"]
    }
    certainties = {
        Condition.from_values(item["task"], item["method"], item["setting"]): RateCertainty(
            item["best"],
            {float(rate): share for rate, share in item["shares"].items()},
            item["resampled"] and Resampled(item["resampled"]),
        )
        # Records of earlier versions lack certainties.
        for item in data.get("rate_certainties", [])
    }
    return StudyRecord(data["machine"], data["baseline"], trials, bootstrap, certainties)


def _trial_to_dict(trial: Trial) -> dict[str, Any]:
    data: dict[str, Any] = {"spec": trial.spec.to_dict(), "status": trial.status.value}
    if trial.result:
        # The folder exists only on this machine.
        data["result"] = {name: value for name, value in trial.result.to_dict().items() if name != "folder"}
    if trial.error:
        data["error"] = trial.error
    return data


def _condition_to_dict(condition: Condition) -> dict[str, Any]:
    return {"task": condition.task, "method": condition.method, "setting": condition.values}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
