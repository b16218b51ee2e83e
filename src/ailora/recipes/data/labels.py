"""Labels of a classification or regression task: names of classes, or numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ailora.errors import InputError
from ailora.formatting import shorten
from ailora.recipes.evaluation.classification_metrics import METRICS

_WHOLE = re.compile(r"-?[0-9]+")
#: Python refuses to convert more than 4,300 digits to an int; no float has more than 309.
_MAX_DIGITS = 300
#: Of a list of labels, and of a label, in messages.
_MAX_SHOWN = 500
_DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Labels:
    """Classes of a task, or the numbers of a regression.

    Attributes:
        names: names of the classes in the order of their ids; None for regression.
    """

    names: tuple[str, ...] | None

    @classmethod
    def from_values(cls, values: Sequence[object], origins: Sequence[str], *, regression: bool) -> Labels:
        """Collect the classes of a training set.

        Args:
            values: label of each row.
            origins: `file:line` of each row, for error messages.
            regression: whether labels are numbers to predict.

        Returns:
            The distinct values, sorted by number if all are whole numbers, else by name.

        Raises:
            InputError: There is a single class, a value does not name a class, or spellings of a class differ.
        """
        if regression:
            return cls(None)
        _validate_types(values, origins)
        first_origins: dict[str, str] = {}
        for value, origin in zip(values, origins, strict=True):
            first_origins.setdefault(_name(value), origin)
        if len(first_origins) < 2:
            name = next(iter(first_origins))
            raise InputError(f"expected at least two classes in the training data, got the single class {name!r}")
        if long := next((name for name in first_origins if len(name) > _MAX_DIGITS and _WHOLE.fullmatch(name)), None):
            raise InputError(f"{first_origins[long]}: label {long[:80]!r} is too long a number: {len(long):,} digits")
        if not all(_WHOLE.fullmatch(name) for name in first_origins):
            _validate_not_decimal(first_origins)
            return cls(tuple(sorted(first_origins)))
        _validate_spellings(first_origins)
        # By number: as text, class 10 would stand before class 2.
        return cls(tuple(sorted(first_origins, key=int)))

    @classmethod
    def from_result(cls, names: object) -> Labels:
        """Restore the labels that `result.json` of a run holds.

        Raises:
            InputError: they are neither null nor the names of two classes or more.
        """
        if names is None:
            return cls(None)
        if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
            raise InputError(f"labels are a list of at least two names, or null, not {shorten(repr(names), 80)}")
        return cls(tuple(names))

    @property
    def num_labels(self) -> int:
        """Outputs of the model's head: the number of classes, or 1 for regression."""
        return len(self.names) if self.names else 1

    def encode(self, value: object, origin: str) -> int | float:
        """Encode a label as the model is trained on it.

        Args:
            value: label as the file holds it.
            origin: `file:line` of the row, for error messages.

        Returns:
            The id of the class, or the number of a regression.

        Raises:
            InputError: The class does not occur in the training data, or the number of a regression is not finite.
        """
        if self.names is not None:
            name = _name(value)
            if name not in self.names:
                labels, shown = shorten(", ".join(self.names), _MAX_SHOWN), shorten(name, _MAX_SHOWN)
                raise InputError(f"{origin}: label {shown!r} is not in the training data: {labels}")
            return self.names.index(name)
        try:
            number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{origin}: label {value!r} is not a number, which regression needs")
        return number

    def decode(self, prediction: float) -> str | float:
        """Return the class name of a predicted id, or the predicted number of a regression."""
        return self.names[int(prediction)] if self.names else float(prediction)


def is_missing(value: object) -> bool:
    """Return whether a cell holds no label: None, blanks, or NaN, which pandas writes for a missing value."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _name(value: object) -> str:
    return str(value).strip()


def _validate_types(values: Sequence[object], origins: Sequence[str]) -> None:
    """Validate that labels are text, whole numbers or booleans, and of the same type within a file."""
    # By file and not over all files: 1 in JSON is "1" in TSV, and both may belong to a training set.
    first_of_file: dict[str, tuple[object, str]] = {}
    for value, origin in zip(values, origins, strict=True):
        if isinstance(value, float):
            raise InputError(f"{origin}: label {value!r} is a decimal number, no class: {_describe_choices()}")
        if not isinstance(value, (str, int)):
            kind = type(value).__name__
            raise InputError(f"{origin}: label must be text or a whole number, got a {kind} ({value!r})")
        other, elsewhere = first_of_file.setdefault(origin.rpartition(":")[0], (value, origin))
        if type(other) is not type(value):
            raise InputError(
                f"{origin}: label {value!r} is of another kind than {other!r} ({elsewhere}): write all labels alike"
            )


def _validate_not_decimal(origins: dict[str, str]) -> None:
    """Validate that the names (-> origin) are not all numbers: with decimals among them they are a quantity."""
    if all(_DECIMAL.fullmatch(name) for name in origins):
        name = next(name for name in origins if not _WHOLE.fullmatch(name))
        raise InputError(f"{origins[name]}: label {name!r} is a decimal number, no class: {_describe_choices()}")


def _validate_spellings(origins: dict[str, str]) -> None:
    """Validate that no two names (-> origin) are the same number, such as 1 and 01."""
    spellings: dict[int, str] = {}
    for name, origin in origins.items():
        if (other := spellings.setdefault(int(name), name)) != name:
            raise InputError(
                f"{origin}: label {name!r} is the same number as {other!r} ({origins[other]}): write all labels alike"
            )


def _describe_choices() -> str:
    metrics = " or ".join(name for name, metric in METRICS.items() if metric.regression)
    return f"for regression choose metric {metrics}, for classes write labels as text or whole numbers"
