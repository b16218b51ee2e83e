"""The grid of a study: its comparisons, the cells of each, and the configuration that each cell runs."""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ailora.errors import AiloraError, InputError, unknown_name
from ailora.plan.adapter_metadata import library_versions
from ailora.recipes.config.loader import load_config, set_dotted
from ailora.recipes.config.schema import RunConfig
from ailora.studies.lr_search import Progress, Rates, Schedule
from ailora.studies.methods import parse_methods
from ailora.studies.parameter_budget import matched
from ailora.studies.study_config import StudyConfig

#: The task of a study that names none.
ONLY_TASK = "base"
_OWNED = {"training.learning_rate": "learning_rate", "training.seed": "seeds", "output": "output"}


@dataclass(frozen=True)
class Group:
    """One curve of score over learning rate: a method on a task at a point of the grid.

    Attributes:
        task, method: their labels.
        point: (dotted key, value as JSON) of the grid.
    """

    task: str
    method: str
    point: tuple[tuple[str, str], ...] = ()

    @property
    def values(self) -> dict[str, Any]:
        """The grid's keys with their values."""
        return {key: json.loads(value) for key, value in self.point}


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        group: what it belongs to.
        learning_rate: of the optimizer.
        seed: of the data order, the new heads and the random factors.
        max_steps: scheduled to end after so many steps; None: as the base says.
    """

    group: Group
    learning_rate: float
    seed: int
    max_steps: int | None = None

    def described(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Cell:
        """From `described`, as JSON keeps it."""
        group = data["group"]
        point = tuple((key, value) for key, value in group["point"])
        return cls(Group(group["task"], group["method"], point), **{k: v for k, v in data.items() if k != "group"})


class Grid:
    """What a study compares.

    Args:
        config: the study file.

    Attributes:
        methods: by label.
        groups: every comparison's curve, the baseline's first in each task and point.

    Raises:
        InputError: an unknown method, key, metric or baseline, a value that the recipe refuses, a grid without cells.
    """

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self.methods = parse_methods(config.methods)
        self.baseline = config.baseline or next(iter(self.methods))
        if self.baseline not in self.methods:
            raise unknown_name("baseline", self.baseline, self.methods)
        for key, owner in _OWNED.items():
            if key in config.grid:
                raise InputError(f"grid.{key} cannot be set: it follows from {owner}")
        self.groups = list(dict.fromkeys(self._all_groups()))
        self._versions = library_versions()
        self._keys: dict[Cell, str] = {}
        # Everything that a trial could refuse is refused before the first one runs.
        self._bases = {group: self._load(group) for group in self.groups}
        if config.match_parameters:
            self._bases = {group: self._matched(group) for group in self.groups}
        for group in self.groups:
            self.metric_of(group)

    def base_of(self, group: Group) -> RunConfig:
        """The configuration of a group's runs, but for learning rate, seed and output."""
        return self._bases[group]

    def baseline_of(self, group: Group) -> Group:
        """The baseline's group on the same task, at the same point or, where the method sets its own, the nearest.

        A method that the grid's keys mean nothing to, as full fine-tuning, is compared with the baseline's first point.
        """
        others = [other for other in self.groups if other.task == group.task and other.method == self.baseline]
        shared = dict(group.point)
        return max(others, key=lambda other: sum(shared.get(key) == value for key, value in other.point))

    def point_of(self, group: Group) -> str:
        """A group's point in words; empty where the study has no grid."""
        return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in group.values.items())

    def metric_of(self, group: Group) -> str:
        """What decides in a group, on the validation split.

        Raises:
            InputError: the recipe does not give the study's metric.
        """
        scores = self.base_of(group).scores
        name = self.config.metric or next(iter(scores))
        if name not in scores:
            raise unknown_name(f"metric of task {group.task!r}", name, scores)
        return name

    def larger_is_better(self, group: Group) -> bool:
        """Whether a larger value of the group's metric is better."""
        return self.base_of(group).scores[self.metric_of(group)]

    def schedule_of(self, group: Group) -> Schedule:
        """The learning rates and seeds of a group."""
        rates = Rates.of(self.methods[group.method].learning_rate or self.config.learning_rate)
        config = self.config
        return Schedule(rates, config.seeds, config.extra_seeds, config.seeds_at == "all")

    def run_config(self, cell: Cell) -> RunConfig:
        """What a cell runs: `output` holds nothing else."""
        return self._placed(cell, str(self.folder_of(cell)))

    def folder_of(self, cell: Cell) -> Path:
        """The folder of a cell's run."""
        return Path(self.config.output) / "trials" / self.key_of(cell)

    def key_of(self, cell: Cell) -> str:
        """A hash of the cell's whole configuration and of the versions that run it."""
        if cell not in self._keys:
            config = self._placed(cell, "").model_dump()
            content = json.dumps([config, self._versions], sort_keys=True, default=str)
            self._keys[cell] = hashlib.sha256(content.encode()).hexdigest()[:20]
        return self._keys[cell]

    def holds(self, cell: Cell, key: str) -> bool:
        """Whether a trial of that key is what this study would run for the cell now, with these versions."""
        return cell.group in self._bases and self.key_of(cell) == key

    def progress_of(self, group: Group, scores: Mapping[Cell, float]) -> Progress:
        """How far a group's search for its best rate has come.

        Args:
            group: one of the study's.
            scores: of the cells that have ended, larger is better; NaN: it failed.
        """
        own = {
            (cell.learning_rate, cell.seed): score
            for cell, score in scores.items()
            if cell.group == group and cell.max_steps is None
        }
        return self.schedule_of(group).plan(own)

    def wanted(self, scores: Mapping[Cell, float]) -> list[Cell]:
        """The cells that are known to be needed, those that have ended included.

        Args:
            scores: as of `progress_of`.
        """
        by_group: dict[Group, dict[Cell, float]] = {group: {} for group in self.groups}
        for cell, score in scores.items():
            if cell.group in by_group:
                by_group[cell.group][cell] = score
        return [
            Cell(group, rate, seed)
            for group, own in by_group.items()
            for rate, seed in self.progress_of(group, own).wanted
        ]

    def _placed(self, cell: Cell, output: str) -> RunConfig:
        base = self.base_of(cell.group)
        training = {**base.training, "learning_rate": cell.learning_rate, "seed": cell.seed}
        if cell.max_steps is not None:
            training["max_steps"] = cell.max_steps
        return base.model_copy(update={"training": training, "output": output})

    def _matched(self, group: Group) -> RunConfig:
        try:
            return matched(self._bases[group], self._bases[self.baseline_of(group)])
        except AiloraError as error:
            raise InputError(f"method {group.method!r}, task {group.task!r}: {error}") from None

    def _all_groups(self) -> Iterable[Group]:
        keys = list(self.config.grid)
        labels = [self.baseline, *(label for label in self.methods if label != self.baseline)]
        for task in self._tasks:
            for values in itertools.product(*self.config.grid.values()):
                for label in labels:
                    point = self.methods[label].point(dict(zip(keys, values, strict=True)))
                    yield Group(task, label, tuple((key, json.dumps(value)) for key, value in point.items()))

    @functools.cached_property
    def _tasks(self) -> dict[str, dict[str, Any]]:
        return {name: changes or {} for name, changes in (self.config.tasks or {ONLY_TASK: {}}).items()}

    def _load(self, group: Group) -> RunConfig:
        assert isinstance(self.config.base, dict)
        raw = copy.deepcopy(self.config.base)
        method = self.methods[group.method]
        try:
            for key, value in self._tasks[group.task].items():
                if key in _OWNED:
                    raise InputError(f"{key} cannot be set: it follows from {_OWNED[key]}")
                set_dotted(raw, key, value)
            for key, value in group.values.items():
                set_dotted(raw, key, value)
            method.apply(raw)
            return load_config(raw | {"output": self.config.output})
        except InputError as error:
            point = "".join(f", {key} {value}" for key, value in group.values.items())
            raise InputError(f"method {group.method!r}, task {group.task!r}{point}: {error}") from None
