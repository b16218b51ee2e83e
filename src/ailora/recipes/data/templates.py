"""Templates: text with column names in braces."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ailora.errors import InputError

_FORMATTER = string.Formatter()


@dataclass(frozen=True)
class Template:
    """Text with column names in braces, or a list of alternative texts.

    Each row uses the first alternative whose columns all hold text or a number:
    `["{instruction} {input}", "{instruction}"]` omits an empty input. `{{` and `}}` stand for literal braces.

    Attributes:
        key: Configuration key of the template, for error messages.
        texts: Alternatives in order of preference.
        columns: For each alternative, the columns that it names.
    """

    key: str
    texts: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]

    @classmethod
    def parse(cls, value: str | Sequence[str], key: str) -> Template:
        """Parse the template of a configuration.

        Args:
            value: Text, or list of alternatives.
            key: Configuration key of the template, for error messages.

        Returns:
            The template.

        Raises:
            InputError: There is no alternative, or an alternative has no braces, braces that do not match, or braces
                around something other than a column name.
        """
        texts = (value,) if isinstance(value, str) else tuple(value)
        if not texts:
            raise InputError(f"{key} is empty; expected at least one template")
        return cls(key, texts, tuple(_parse_columns(text, key) for text in texts))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of columns in all alternatives."""
        return tuple(dict.fromkeys(name for columns in self.columns for name in columns))

    def fill(self, row: Mapping[str, object], origin: str) -> str:
        """Fill in the columns of a row.

        Args:
            row: Values by column.
            origin: `file:line` of the row, for error messages.

        Returns:
            The first alternative whose columns all hold text or a number, filled in.

        Raises:
            InputError: The row lacks a column, or every alternative names a column without text or a number.
        """
        for name in self.names:
            if name not in row:
                raise InputError(
                    f"{origin}: {self.key} names the column {name!r}, which is missing; the columns are "
                    + ", ".join(row)
                )
        for text, columns in zip(self.texts, self.columns, strict=True):
            if all(_is_usable(row[name]) for name in columns):
                return text.format_map({name: row[name] for name in columns})
        unusable = ", ".join(name for name in self.names if not _is_usable(row[name]))
        raise InputError(f"{origin}: {self.key} cannot be filled in; columns without text or a number: {unusable}")


def _parse_columns(text: str, key: str) -> tuple[str, ...]:
    try:
        parts = list(_FORMATTER.parse(text))
    except ValueError as error:
        raise InputError(
            f"{key}: {text!r} is not a template: {error}; write {{{{ and }}}} for literal braces"
        ) from None
    fields = [(name, format_, conversion) for _, name, format_, conversion in parts if name is not None]
    # Attributes, indexes and formats would let a configuration file read more than the columns of a row.
    for name, format_, conversion in fields:
        # Unlike Python's identifiers, column names may contain spaces and hyphens.
        is_column_name = name.replace(" ", "_").replace("-", "_").isidentifier()
        if not is_column_name or format_ or conversion:
            raise InputError(
                f"{key}: {text!r}: expected a column name in braces; write {{{{ and }}}} for literal braces"
            )
    if not fields:
        raise InputError(f"{key}: {text!r} names no column; write {{column}} for the values of a column")
    return tuple(dict.fromkeys(name for name, _, _ in fields))


def _is_usable(value: object) -> bool:
    """Return whether a value is a number, or text that is not blank."""
    if isinstance(value, bool) or value is None:
        return False
    # pandas writes missing values to Parquet files as NaN, so NaN counts as empty.
    if isinstance(value, float):
        return not math.isnan(value)
    return isinstance(value, int) or (isinstance(value, str) and bool(value.strip()))
