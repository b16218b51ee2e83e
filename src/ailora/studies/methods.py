"""The methods of a study: a policy by name, or a label with overrides of a run's configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pydantic

from ailora.errors import InputError
from ailora.recipes.config.loader import set_dotted
from ailora.recipes.config.method import FullFineTuning, Preset, parse_method
from ailora.recipes.config.schema import explained
from ailora.recipes.config.sections import OWN_ADAPTER_KEYS
from ailora.studies.study_config import RateConfig


@dataclass(frozen=True)
class Method:
    """What a method changes in a run's configuration.

    Attributes:
        policy: `adapter.policy`; `full` trains without an adapter.
        overrides: dotted key -> value.
        learning_rate: the rates it is tried at; None: the study's.
    """

    policy: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: RateConfig | None = None

    @property
    def full(self) -> bool:
        """Whether the whole model is trained: keys of the adapter mean nothing."""
        return isinstance(parse_method(self.policy), FullFineTuning)

    def point(self, values: dict[str, Any]) -> dict[str, Any]:
        """A point of the grid without the keys that mean nothing to the method, or that it sets itself."""
        idle = {key for key in values if self.full and key.startswith("adapter.")}
        return {key: value for key, value in values.items() if key not in idle | self.overrides.keys()}

    def apply(self, raw: dict[str, Any]) -> None:
        """Change the plain data of a run's configuration, in place."""
        if self.full:
            raw["adapter"] = {}
        elif not isinstance(parse_method(self.policy), Preset) and isinstance(raw.get("adapter"), dict):
            raw["adapter"] = {key: value for key, value in raw["adapter"].items() if key not in OWN_ADAPTER_KEYS}
        set_dotted(raw, "adapter.policy", self.policy)
        for key, value in self.overrides.items():
            set_dotted(raw, key, value)


def parse_methods(entries: Sequence[str | dict[str, dict[str, Any] | None]]) -> dict[str, Method]:
    """The methods of a study file by label.

    Args:
        entries: names of policies, and mappings from a label to overrides.

    Raises:
        InputError: a label that is there twice, or a learning rate that is none.
    """
    methods: dict[str, Method] = {}
    for entry in entries:
        pairs = {entry: None}.items() if isinstance(entry, str) else entry.items()
        for label, changes in pairs:
            if label in methods:
                raise InputError(f"methods: {label!r} is there twice")
            methods[label] = _method(label, dict(changes or {}))
    return methods


def _method(label: str, changes: dict[str, Any]) -> Method:
    policy = changes.pop("method", label)
    if not isinstance(policy, str):
        raise InputError(f"methods.{label}.method: expected the name of a policy, got {policy!r}")
    rates = changes.pop("learning_rate", None)
    return Method(policy, changes, None if rates is None else _rates(rates, f"methods.{label}.learning_rate"))


def _rates(raw: Any, where: str) -> RateConfig:
    try:
        rates = RateConfig.model_validate(raw)
    except pydantic.ValidationError as error:
        if not isinstance(raw, dict):
            raise InputError(f"{where}: expected values, or from, to and per_decade, got {raw!r}") from None
        raise InputError(f"{where}: {explained(error, raw, RateConfig)}") from None
    rates.check(where)
    return rates
