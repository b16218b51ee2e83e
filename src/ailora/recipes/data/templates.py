"""Templates: a text with the names of columns in braces."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ailora.errors import InputError

_FORMATTER = string.Formatter()


@dataclass(frozen=True)
class Template:
    """One text or several with `{column}` in them; of several, the first whose columns all hold text is used.

    `{{` and `}}` are braces. So `["{instruction}\\n{input}", "{instruction}"]` leaves out an input that is empty.

    Attributes:
        key: the configuration key, for messages.
        texts: the alternatives.
        columns: the columns that each of them names.
    """

    key: str
    texts: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, value: str | Sequence[str], key: str) -> Template:
        """The template that a configuration's key holds.

        Raises:
            InputError: broken braces, more than a name within them, or no column at all.
        """
        texts = (value,) if isinstance(value, str) else tuple(value)
        if not texts:
            raise InputError(f"{key} is empty")
        return cls(key, texts, tuple(_columns(text, key) for text in texts))

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that any of the alternatives names."""
        return tuple(dict.fromkeys(name for columns in self.columns for name in columns))

    def fill(self, row: Mapping[str, object], where: str) -> str:
        """The text of a row.

        Args:
            row: values by column.
            where: the row's origin, for messages.

        Raises:
            InputError: a column that the row does not have, or no alternative whose columns all hold text.
        """
        for name in self.names:
            if name not in row:
                raise InputError(f"{where}: {self.key} names the column {name!r}; the data have: {', '.join(row)}")
        for text, columns in zip(self.texts, self.columns, strict=True):
            if all(_holds_text(row[name]) for name in columns):
                return text.format_map({name: row[name] for name in columns})
        empty = ", ".join(name for name in self.names if not _holds_text(row[name]))
        raise InputError(f"{where}: {self.key} has no text to fill in: {empty} is empty")


def _columns(text: str, key: str) -> tuple[str, ...]:
    try:
        parts = list(_FORMATTER.parse(text))
    except ValueError as error:
        raise InputError(f"{key}: {text!r} is no template: {error}; write {{{{ and }}}} for braces") from None
    names = [(name, format_, conversion) for _, name, format_, conversion in parts if name is not None]
    for name, format_, conversion in names:
        if not name or format_ or conversion or not name.replace(" ", "_").replace("-", "_").isidentifier():
            raise InputError(f"{key}: {text!r}: between braces stands the name of a column; {{{{ and }}}} are braces")
    if not names:
        raise InputError(f"{key}: {text!r} names no column: write it as {{column}}")
    return tuple(dict.fromkeys(name for name, _, _ in names))


def _holds_text(value: object) -> bool:
    """Numbers are text too, as JSON and Parquet have them."""
    if isinstance(value, bool) or value is None:
        return False
    if isinstance(value, float):
        return not math.isnan(value)
    return isinstance(value, int) or (isinstance(value, str) and bool(value.strip()))
