"""What the labels of a task are called, or that they are numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ailora.errors import InputError
from ailora.recipes.evaluation.classification_metrics import METRICS

_WHOLE = re.compile(r"-?[0-9]+")
#: No float is longer, and Python converts no more than 4,300 digits.
_MAX_DIGITS = 300
_DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Labels:
    """What the classes are called, or that labels are numbers.

    Attributes:
        names: the classes' names in the order of their ids; None for regression.
    """

    names: tuple[str, ...] | None

    @classmethod
    def of(cls, values: Sequence[object], where: Sequence[str], *, regression: bool) -> Labels:
        """The labels of a training set: its distinct values, sorted, as numbers where all are whole numbers.

        Args:
            values: a label per row.
            where: the origin of each row, for messages.
            regression: whether the labels are numbers to be predicted.

        Raises:
            InputError: a single class; values that are no names of classes, or not clearly the same or another one.
        """
        if regression:
            return cls(None)
        _check_kinds(values, where)
        places: dict[str, str] = {}
        for value, place in zip(values, where, strict=True):
            places.setdefault(_name(value), place)
        if len(places) < 2:
            raise InputError(f"the training data hold the single class {next(iter(places))!r}: at least two are needed")
        if long := next((name for name in places if len(name) > _MAX_DIGITS and _WHOLE.fullmatch(name)), None):
            raise InputError(f"{places[long]}: label {long[:80]!r} is too long a number: {len(long):,} digits")
        if not all(_WHOLE.fullmatch(name) for name in places):
            _check_decimals(places)
            return cls(tuple(sorted(places)))
        _check_spellings(places)
        return cls(tuple(sorted(places, key=int)))

    @property
    def count(self) -> int:
        """Outputs of the head: the number of classes, or 1 for regression."""
        return len(self.names) if self.names else 1

    def encode(self, value: object, where: str) -> int | float:
        """The id of a class, or the number itself.

        Raises:
            InputError: a class that training never had; not a finite number where regression needs one.
        """
        if self.names is not None:
            name = _name(value)
            if name not in self.names:
                raise InputError(f"{where}: label {name!r} is not in the training data: {', '.join(self.names)}")
            return self.names.index(name)
        try:
            number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{where}: label {value!r} is not a number, which regression needs")
        return number

    def name(self, prediction: float) -> str | float:
        """What a predicted id is called; the number itself for regression."""
        return self.names[int(prediction)] if self.names else float(prediction)


def is_missing(value: object) -> bool:
    """Whether a row has no label: nothing, blanks, or what Parquet and pandas put in the place of nothing."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _name(value: object) -> str:
    return str(value).strip()


def _check_kinds(values: Sequence[object], where: Sequence[str]) -> None:
    """Labels are text, whole numbers, or true and false, and of one kind within a file.

    Files of several formats may well stand beside each other: what is 1 in JSON is "1" in TSV.
    """
    first: dict[str, tuple[object, str]] = {}
    for value, place in zip(values, where, strict=True):
        if isinstance(value, float):
            raise InputError(f"{place}: label {value!r} is a decimal number, no class: {_no_classes()}")
        if not isinstance(value, (str, int)):
            raise InputError(f"{place}: label {value!r} is a {type(value).__name__}; expected a text or a whole number")
        other, elsewhere = first.setdefault(place.rpartition(":")[0], (value, place))
        if type(other) is not type(value):
            raise InputError(
                f"{place}: label {value!r} is of another kind than {other!r} ({elsewhere}): write all labels alike"
            )


def _check_decimals(places: dict[str, str]) -> None:
    """Texts that all are numbers, not all whole, are a quantity and not the names of classes."""
    if all(_DECIMAL.fullmatch(name) for name in places):
        name = next(name for name in places if not _WHOLE.fullmatch(name))
        raise InputError(f"{places[name]}: label {name!r} is a decimal number, no class: {_no_classes()}")


def _check_spellings(places: dict[str, str]) -> None:
    spelled: dict[int, str] = {}
    for name, place in places.items():
        if (other := spelled.setdefault(int(name), name)) != name:
            raise InputError(
                f"{place}: label {name!r} is the same number as {other!r} ({places[other]}): write all labels alike"
            )


def _no_classes() -> str:
    metrics = " or ".join(name for name, metric in METRICS.items() if metric.regression)
    return f"for regression choose metric {metrics}, for classes write labels as text or whole numbers"
