"""Labels of a task: class names, or numbers for regression."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ailora.errors import InputError
from ailora.formatting import shorten, truncate
from ailora.recipes.evaluation.classification_metrics import METRICS

_WHOLE = re.compile(r"[-+]?[0-9]+")
#: Maximum number of digits in a whole number. Python converts at most 4,300 digits to an int, and a float has at most
#: 309 digits before the point.
_MAX_DIGITS = 300
#: Maximum number of characters of a label, or of a list of labels, in error messages.
_MAX_SHOWN_CHARS = 500
_DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Labels:
    """Labels of a task, with the names of its classes.

    Attributes:
        names: Class names in the order of the class ids; None for regression.
    """

    names: tuple[str, ...] | None

    @classmethod
    def from_values(cls, values: Sequence[object], origins: Sequence[str], *, regression: bool) -> Labels:
        """Collect the classes of a training set.

        Args:
            values: Label of each row.
            origins: `file:line` of each row, for error messages.
            regression: Whether labels are numbers instead of classes.

        Returns:
            Labels with the distinct values as names: in numerical order if all are whole numbers, else alphabetically.

        Raises:
            InputError: The data have a single class, a value cannot name a class, or two values are spellings of the
                same number, such as 1 and 01.
        """
        if regression:
            return cls(None)
        _validate_types(values, origins)
        first_origins: dict[str, str] = {}
        for value, origin in zip(values, origins, strict=True):
            first_origins.setdefault(_normalize(value), origin)
        if len(first_origins) < 2:
            name = next(iter(first_origins))
            raise InputError(f"expected at least two classes in the training data, got the single class {name!r}")
        numbers = filter(_WHOLE.fullmatch, first_origins)
        if too_long := next((name for name in numbers if len(name) > _MAX_DIGITS), None):
            shown = truncate(repr(too_long), 80)
            raise InputError(
                f"{first_origins[too_long]}: label {shown} has {len(too_long):,} digits; expected at most {_MAX_DIGITS}"
            )
        if not all(_WHOLE.fullmatch(name) for name in first_origins):
            _validate_not_decimal(first_origins)
            return cls(tuple(sorted(first_origins)))
        _validate_spellings(first_origins)
        # Sort by number, because alphabetical order puts class 10 before class 2.
        return cls(tuple(sorted(first_origins, key=int)))

    @classmethod
    def from_result(cls, names: object) -> Labels:
        """Restore the labels stored in the `result.json` of a run.

        Args:
            names: Value of `labels` in the file.

        Returns:
            The labels.

        Raises:
            InputError: The value is neither null nor a list of at least two names.
        """
        if names is None:
            return cls(None)
        if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
            raise InputError(f"labels must be null or a list of at least two names, got {shorten(repr(names), 80)}")
        return cls(tuple(names))

    @property
    def num_labels(self) -> int:
        """Number of outputs of the model's head: the number of classes, or 1 for regression."""
        return len(self.names) if self.names else 1

    def encode(self, value: object, origin: str) -> int | float:
        """Encode a label for training.

        Args:
            value: Label as stored in the file.
            origin: `file:line` of the row, for error messages.

        Returns:
            The class id, or the number for regression.

        Raises:
            InputError: The class does not occur in the training data, or the number is not finite.
        """
        if self.names is not None:
            name = _normalize(value)
            if name not in self.names:
                labels, shown = shorten(", ".join(self.names), _MAX_SHOWN_CHARS), shorten(name, _MAX_SHOWN_CHARS)
                raise InputError(f"{origin}: label {shown!r} is not in the training data, which has {labels}")
            return self.names.index(name)
        # NaN stands for a value that is not a number, and is refused below.
        try:
            number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            shown = shorten(repr(value), _MAX_SHOWN_CHARS)
            raise InputError(f"{origin}: label must be a finite number for regression, got {shown}")
        return number

    def decode(self, prediction: float) -> str | float:
        """Return the class name for a predicted id, or the predicted number for regression."""
        return self.names[int(prediction)] if self.names else float(prediction)


def is_missing(value: object) -> bool:
    """Return whether a label is missing: None, blank text, or NaN."""
    if isinstance(value, str):
        return not value.strip()
    # pandas writes NaN for missing values.
    return value is None or (isinstance(value, float) and math.isnan(value))


def _normalize(value: object) -> str:
    return str(value).strip()


def _validate_types(values: Sequence[object], origins: Sequence[str]) -> None:
    """Validate that labels are text, whole numbers or booleans, with a single type in each file."""
    # Types may differ between files: 1 in a JSON file and "1" in a TSV file are the same class.
    first_of_file: dict[str, tuple[object, str]] = {}
    for value, origin in zip(values, origins, strict=True):
        if isinstance(value, float):
            raise InputError(f"{origin}: label {value!r} is a decimal number; {_describe_choices()}")
        if not isinstance(value, (str, int)):
            kind = type(value).__name__
            shown = shorten(repr(value), _MAX_SHOWN_CHARS)
            raise InputError(f"{origin}: label must be text or a whole number, got a {kind} ({shown})")
        first, first_origin = first_of_file.setdefault(origin.rpartition(":")[0], (value, origin))
        if type(first) is not type(value):
            raise InputError(
                f"{origin}: label {value!r} and label {first!r} ({first_origin}) differ in type; write all labels of a "
                "file as text, or all as whole numbers"
            )


def _validate_not_decimal(first_origins: dict[str, str]) -> None:
    """Refuse labels that are all numbers, some of them with decimals: such labels are quantities, not classes."""
    if all(_DECIMAL.fullmatch(name) for name in first_origins):
        name = next(name for name in first_origins if not _WHOLE.fullmatch(name))
        raise InputError(f"{first_origins[name]}: label {name!r} is a decimal number; {_describe_choices()}")


def _validate_spellings(first_origins: dict[str, str]) -> None:
    """Validate that no two names mean the same number, such as 1 and 01."""
    spellings: dict[int, str] = {}
    for name, origin in first_origins.items():
        if (first := spellings.setdefault(int(name), name)) != name:
            raise InputError(
                f"{origin}: label {name!r} is the same number as label {first!r} ({first_origins[first]}); use the "
                "same spelling in all rows"
            )


def _describe_choices() -> str:
    metrics = " or ".join(name for name, metric in METRICS.items() if metric.regression)
    return f"for regression, choose metric {metrics}; for classification, write labels as text or whole numbers"
