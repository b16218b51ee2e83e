"""Methods of a study: names of policies, or labels with overrides of a run's configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic

from ailora.errors import InputError
from ailora.recipes.config.method import AiloraPolicy, FullFineTuning, Method, parse_method
from ailora.recipes.config.overrides import set_dotted
from ailora.recipes.config.sections import AILORA_ADAPTER_KEYS
from ailora.recipes.config.validation import format_validation_error
from ailora.studies.study_config import RateConfig


@dataclass(frozen=True)
class StudyMethod:
    """Changes to a run configuration for a method.

    Attributes:
        method: The training method.
        overrides: Dotted key -> value.
        learning_rate: Rates of the method; None for the rates of the study.
    """

    method: Method
    overrides: Mapping[str, object]
    learning_rate: RateConfig | None = None

    def select_used(self, setting: Mapping[str, object]) -> dict[str, object]:
        """Select the values of a setting that the method uses and does not override."""
        # Full fine-tuning has no adapter, so settings of the adapter do not apply.
        has_adapter = not isinstance(self.method, FullFineTuning)
        return {
            key: value
            for key, value in setting.items()
            if key not in self.overrides and (has_adapter or not key.startswith("adapter."))
        }

    def apply(self, raw: dict[str, Any]) -> None:
        """Apply the method and its overrides to the plain data of a run's configuration, in place."""
        # Remove keys of the base configuration that do not apply to the method, because validation would refuse them.
        if isinstance(self.method, FullFineTuning):
            raw["adapter"] = {}
        elif not isinstance(self.method, AiloraPolicy) and isinstance(raw.get("adapter"), dict):
            raw["adapter"] = {key: value for key, value in raw["adapter"].items() if key not in AILORA_ADAPTER_KEYS}
        for key, value in {"adapter.policy": str(self.method), **self.overrides}.items():
            set_dotted(raw, key, value)


def parse_methods(entries: Sequence[str | dict[str, dict[str, Any] | None]]) -> dict[str, StudyMethod]:
    """Parse the methods of a study file by label.

    Args:
        entries: Names of policies, and mappings from a label to overrides.

    Returns:
        Label -> method, in the order of the file.

    Raises:
        InputError: A label is a duplicate, a policy is unknown, or a learning rate is invalid.
    """
    methods: dict[str, StudyMethod] = {}
    for entry in entries:
        changes_by_label = {entry: None} if isinstance(entry, str) else entry
        for label, changes in changes_by_label.items():
            if label in methods:
                raise InputError(f"methods: duplicate label {label!r}")
            methods[label] = _parse_method(label, dict(changes or {}))
    return methods


def _parse_method(label: str, changes: dict[str, Any]) -> StudyMethod:
    policy, rates = changes.pop("method", label), changes.pop("learning_rate", None)
    if not isinstance(policy, str):
        raise InputError(f"methods.{label}.method: expected the name of a policy, got {policy!r}")
    try:
        method = parse_method(policy)
    except InputError as error:
        raise InputError(f"methods.{label}: {error}") from None
    learning_rate = None if rates is None else _parse_rates(rates, f"methods.{label}.learning_rate")
    return StudyMethod(method, overrides=changes, learning_rate=learning_rate)


def _parse_rates(raw: object, where: str) -> RateConfig:
    try:
        rates = RateConfig.model_validate(raw)
    except pydantic.ValidationError as error:
        if not isinstance(raw, dict):
            raise InputError(f"{where}: expected values, or from, to and per_decade, got {raw!r}") from None
        raise InputError(f"{where}: {format_validation_error(error, raw, RateConfig)}") from None
    rates.validate_keys(where)
    return rates
