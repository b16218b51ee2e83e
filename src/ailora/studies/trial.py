"""Trials as plain data: specification, status and result."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

#: Task of a study without `tasks:`.
ONLY_TASK = "base"


def is_invalid_input(error: object) -> bool:
    """Return whether the stored error of a trial is an `InputError`, whose cause the user can correct."""
    # `ailora.studies.trial_runner` stores the name of an exception before its message.
    return isinstance(error, str) and error.startswith("InputError: ")


@dataclass(frozen=True)
class Condition:
    """A method on a task at a grid setting. Its trials form a curve of the score over the learning rate.

    Attributes:
        task: Label of the task.
        method: Label of the method.
        setting: (dotted key, value as JSON) for each key of the grid; JSON makes lists and mappings hashable.
    """

    task: str
    method: str
    setting: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_values(cls, task: str, method: str, values: Mapping[str, object]) -> Condition:
        """Build a condition from the values of the grid's keys."""
        return cls(task, method, tuple((key, json.dumps(value)) for key, value in values.items()))

    @property
    def values(self) -> dict[str, Any]:
        """Values of the grid's keys."""
        return {key: json.loads(value) for key, value in self.setting}

    @property
    def label(self) -> str:
        """Task and setting for display; empty in a study without tasks and grid."""
        return ", ".join(part for part in ("" if self.task == ONLY_TASK else self.task, self.setting_label) if part)

    @property
    def setting_label(self) -> str:
        """Setting for display, such as `rank 8`; empty in a study without a grid."""
        return format_setting(self.values)

    @property
    def sentence_prefix(self) -> str:
        """Start of a sentence about the condition, such as `On sst2, rank 8, `; empty if `label` is empty."""
        return f"On {self.label}, " if self.label else ""

    def method_label(self, baseline: Condition) -> str:
        """Return the label of the method, with its setting if the baseline has a different setting."""
        # A subset, because a method may not use all keys of the grid.
        same_setting = {*self.setting} <= {*baseline.setting}
        return self.method if same_setting else f"{self.method} ({self.setting_label})"


def setting_name(key: str) -> str:
    """Return the name of a grid's key for display: the part after its last dot."""
    return key.rpartition(".")[2]


def format_setting(values: Mapping[str, object]) -> str:
    """Format values of the grid's keys, such as `rank 8, dropout 0.1`."""
    return ", ".join(f"{setting_name(key)} {value}" for key, value in values.items())


@dataclass(frozen=True)
class TrialSpec:
    """Specification of a trial.

    Attributes:
        condition: Condition of the trial.
        learning_rate: Learning rate of the optimizer.
        seed: Seed of the data order, the new heads and the random factors.
        max_steps: Number of steps of the schedule; None for the number in the base configuration.
        until_step: Step at which the run stops, to be resumed by a later trial; None for a full run.
    """

    condition: Condition
    learning_rate: float
    seed: int
    max_steps: int | None = None
    until_step: int | None = None

    @property
    def training_arguments(self) -> dict[str, Any]:
        """Training arguments that the trial sets."""
        steps = {} if self.max_steps is None else {"max_steps": self.max_steps}
        return {"learning_rate": self.learning_rate, "seed": self.seed, **steps}

    def to_dict(self) -> dict[str, object]:
        """Convert to plain data for the storage."""
        condition: dict[str, object] = {
            "task": self.condition.task,
            "method": self.condition.method,
            "setting": self.condition.values,
        }
        until = {} if self.until_step is None else {"until_step": self.until_step}
        return condition | {
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            "max_steps": self.max_steps,
            **until,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrialSpec:
        """Build a specification from the plain data of `to_dict`."""
        if "group" in data:
            # Databases of the first versions nest the condition, and store the values of its setting as JSON text.
            group = data["group"]
            condition = Condition(group["task"], group["method"], tuple((key, value) for key, value in group["point"]))
        else:
            condition = Condition.from_values(data["task"], data["method"], data["setting"])
        return cls(condition, data["learning_rate"], data["seed"], data["max_steps"], data.get("until_step"))


@dataclass(frozen=True)
class TrialResult:
    """Result of a completed run. The storage contains results, so a study is readable without its run folders.

    Fields other than `metrics` and `history` are None if the run did not measure them.

    Attributes:
        metrics: Split -> metric -> value at the end.
        history: Evaluations on the validation split during training, each with `step` and `loss`.
        forgetting: Loss on general text in nats per token: `base_loss` before training, `loss` after training, and the
            difference `rise`; and the number of `tokens`.
        seconds: Duration of the whole trial.
        init_seconds: Time to load and adapt the model.
        train_seconds: Duration of the training.
        steps: Number of optimizer steps.
        trainable_parameters: Number of trained parameters.
        total_parameters: Number of all parameters.
        adapter_bytes: Size of the adapter file.
        peak_memory_bytes: Largest memory use of the run on the GPU, or in RAM without a GPU.
        folder: Folder of the run.
    """

    metrics: Mapping[str, Mapping[str, float]]
    history: Sequence[Mapping[str, float]] = ()
    forgetting: Mapping[str, float] | None = None
    seconds: float | None = None
    init_seconds: float | None = None
    train_seconds: float | None = None
    steps: int | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    adapter_bytes: int | None = None
    peak_memory_bytes: int | None = None
    folder: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Convert to plain data, without fields that were not measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrialResult:
        """Build a result from the plain data of `to_dict` or of `result.json`; unknown keys are ignored."""
        measured: dict[str, Any] = {field.name: data[field.name] for field in fields(cls) if field.name in data}
        history = [record for record in data.get("history") or () if {"step", "loss"} <= record.keys()]
        values: dict[str, Any] = {"metrics": {}, **measured, "history": history}
        return cls(**values)


#: Fields of `TrialResult` that are columns of the table of trials.
_RESULT_COLUMNS = [
    field.name for field in fields(TrialResult) if field.name not in ("metrics", "history", "forgetting")
]


class Status(StrEnum):
    """Status of a trial, with values for display. The names are those of Optuna's `TrialState`."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETE = "done"
    FAIL = "failed"
    PRUNED = "pruned"


@dataclass(frozen=True)
class Trial:
    """A trial of a study.

    Attributes:
        number: Optuna's number of the attempt that counts, see `ailora.studies.trial_attempts`.
        key: Hash of the configuration and of the versions of libraries.
        spec: Specification of the trial.
        status: Status of the trial.
        result: Result of the run; None unless complete.
        error: Reason why the trial failed or was pruned; None otherwise.
        attempts: Number of starts, without those that a user interrupted or that failed by invalid input; at least 1.
    """

    number: int
    key: str
    spec: TrialSpec
    status: Status
    result: TrialResult | None = None
    error: str | None = None
    attempts: int = 1

    @property
    def ended(self) -> bool:
        """Whether the trial is complete, failed or pruned."""
        return self.status not in (Status.WAITING, Status.RUNNING)

    @property
    def refused(self) -> bool:
        """Whether the trial failed by invalid input, which the user can correct, such as a missing data file."""
        return self.status is Status.FAIL and is_invalid_input(self.error)

    def to_row(self, grid_keys: Iterable[str]) -> dict[str, Any]:
        """Convert to a row of the table of trials.

        Args:
            grid_keys: Keys of the study's grid; each key becomes a column.

        Returns:
            `key`, `task`, `method`, the grid's keys, `learning_rate`, `seed`, `max_steps`, `status`, `attempts`, each
            metric as `split_metric`, `forgetting` if measured, the other fields of the result, `error`.
        """
        condition, result = self.spec.condition, self.result or TrialResult({})
        values = condition.values
        return {
            "key": self.key,
            "task": condition.task,
            "method": condition.method,
            **{key: values.get(key) for key in grid_keys},
            "learning_rate": self.spec.learning_rate,
            "seed": self.spec.seed,
            "max_steps": self.spec.max_steps,
            "status": self.status.value,
            "attempts": self.attempts,
            **{f"{split}_{name}": value for split, scores in result.metrics.items() for name, value in scores.items()},
            **({"forgetting": result.forgetting["rise"]} if result.forgetting else {}),
            **{name: getattr(result, name) for name in _RESULT_COLUMNS},
            "error": self.error,
        }
