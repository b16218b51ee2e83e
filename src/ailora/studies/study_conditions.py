"""Conditions of a study (methods x tasks x grid settings), and the run configuration of each."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ailora.errors import InputError
from ailora.recipes.config.loader import load_config
from ailora.recipes.config.overrides import set_dotted
from ailora.recipes.config.schema import RunConfig
from ailora.studies.methods import StudyMethod
from ailora.studies.study_config import StudyConfig
from ailora.studies.trial import ONLY_TASK, Condition

#: Key of a run configuration that the study sets -> key of the study file that holds its value.
_OWNED_KEYS = {"training.learning_rate": "learning_rate", "training.seed": "seeds", "output": "output"}
#: Keys that neither tasks nor the grid can set: also the policy, which the overrides of a method may replace.
_STUDY_AND_METHOD_KEYS = {**_OWNED_KEYS, "adapter.policy": "methods"}


def task_overrides(config: StudyConfig) -> dict[str, dict[str, Any]]:
    """Return the overrides of each task. A study without `tasks:` has a single task without overrides."""
    return {name: changes or {} for name, changes in (config.tasks or {ONLY_TASK: {}}).items()}


def list_conditions(config: StudyConfig, methods: Mapping[str, StudyMethod], *, baseline: str) -> list[Condition]:
    """List the conditions of a study.

    Args:
        config: Study file.
        methods: Methods by label.
        baseline: Label of the method to compare with.

    Returns:
        The conditions, without duplicates. For each task and setting, the baseline comes first.
    """
    labels = [baseline, *(label for label in methods if label != baseline)]
    settings = [dict(zip(config.grid, values, strict=True)) for values in itertools.product(*config.grid.values())]
    # `fromkeys` removes duplicates: a method that does not use a grid key has one condition for all values of the key.
    return list(
        dict.fromkeys(
            Condition.from_values(task, label, methods[label].select_used(setting))
            for task, setting, label in itertools.product(task_overrides(config), settings, labels)
        )
    )


def validate_grid_keys(config: StudyConfig) -> None:
    """Refuse grid keys that a different key of the study file already sets.

    Raises:
        InputError: The grid has such a key.
    """
    for key, owner in _STUDY_AND_METHOD_KEYS.items():
        if key in config.grid:
            raise InputError(f"grid.{key} cannot be set: it is set by `{owner}`")


def load_condition_config(
    condition: Condition, config: StudyConfig, method: StudyMethod, *, to_run: bool, folder: Path | None = None
) -> RunConfig:
    """Load the configuration of a condition's runs: the base, changed by the task, the setting and the method.

    Args:
        condition: Condition of the study.
        config: Study file.
        method: Method of the condition.
        to_run: Whether the runs are to start; otherwise user functions are not imported. See `load_config`.
        folder: Absolute folder of the relative paths in the base; None for the working folder.

    Returns:
        The complete configuration. Each trial replaces its learning rate, seed and output.

    Raises:
        InputError: An override is invalid, or sets a key owned by the study.
    """
    assert isinstance(config.base, dict)
    # Overrides change nested sections in place.
    raw = copy.deepcopy(config.base)
    try:
        # Without this check, values of the trials and methods would silently replace those of the overrides.
        for overrides, owners in (
            (task_overrides(config)[condition.task], _STUDY_AND_METHOD_KEYS),
            (method.overrides, _OWNED_KEYS),
        ):
            for key in overrides.keys() & owners.keys():
                raise InputError(f"{key} cannot be set: it is set by `{owners[key]}`")
        for key, value in task_overrides(config)[condition.task].items():
            set_dotted(raw, key, value)
        for key, value in condition.values.items():
            set_dotted(raw, key, value)
        method.apply(raw)
        return load_config(raw | {"output": config.output}, to_run=to_run, folder=folder)
    except InputError as error:
        setting = "".join(f", {key} {value}" for key, value in condition.values.items())
        raise InputError(f"method {condition.method!r}, task {condition.task!r}{setting}: {error}") from None


def find_baseline(condition: Condition, conditions: Iterable[Condition], *, baseline: str) -> Condition:
    """Find the baseline's condition on the same task whose setting shares the most values.

    A method that overrides keys of the grid, or does not use them (full fine-tuning), may match several conditions of
    the baseline; the first is chosen.

    Args:
        condition: Condition to compare.
        conditions: Conditions of the study.
        baseline: Label of the method to compare with.

    Returns:
        The condition of the baseline.
    """
    setting = dict(condition.setting)
    candidates = [c for c in conditions if c.task == condition.task and c.method == baseline]
    return max(candidates, key=lambda c: sum(setting.get(key) == value for key, value in c.setting))
