"""Format values for readers: numbers, sizes, durations, intervals, counts, lists.

Values from damaged files raise no errors: a value of an unexpected type is formatted with `str`.
"""

from __future__ import annotations

import math
import numbers
import os
import re
import shlex
import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeGuard, TypeVar

T = TypeVar("T")

#: Control characters (C0 and C1, without tab and line feed), marks for the direction of text, and lone surrogates.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BYTE_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def format_value(value: object, name: str = "") -> str:
    """Format any value in a few characters.

    Args:
        value: Plain data.
        name: Key of the value. A key that contains `bytes`, `seconds` or `learning_rate` sets the unit. If it contains
            `seed`, numbers have no thousands separators, because readers copy seeds.

    Returns:
        Integers with all digits, floats as by `format_number`, booleans as yes or no, collections as lists, and `-` for
        None and empty strings.
    """
    if is_finite(value):
        for key_part, formatter in _KEY_FORMATTERS.items():
            if key_part in name:
                return formatter(value)
    match value:
        case None | "":
            text = "-"
        case bool():  # before int, of which bool is a subclass
            text = "yes" if value else "no"
        case int():
            text = f"{value:,}"
        case float():
            text = format_number(value)
        case Mapping():
            text = ", ".join(f"{key} {format_value(item, str(key))}" for key, item in value.items()) or "none"
        case list() | tuple():
            text = ", ".join(format_value(item, name) for item in value) or "none"
        case _:
            text = str(value)
    return text


def format_number(value: float, sign: str = "") -> str:
    """Format a number in a few characters, and an infinite number or NaN in words.

    Args:
        value: Number to format.
        sign: `+` to write the sign of positive numbers too.

    Returns:
        Zero and absolute values from 0.001 to 1000 with four decimals, those from 1000 to 100,000 as whole numbers, and
        all others with three significant digits.
    """
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    return f"{value:{sign}{_format_spec(value)}}"


def format_interval(value: float, low: float | None, high: float | None, sign: str = "") -> str:
    """Format an estimate with its interval, `0.8012 [0.7903, 0.8121]`, or alone if the interval is unknown."""
    if low is None or high is None or not all(map(math.isfinite, (value, low, high))):
        return format_number(value, sign)
    value_text, low_text, high_text = format_alike((value, low, high), sign)
    return f"{value_text} [{low_text}, {high_text}]"


def format_alike(values: Sequence[float], sign: str = "") -> list[str]:
    """Format numbers for comparison, all in the format of the number with the largest absolute value.

    Args:
        values: Numbers to format.
        sign: `+` to write the sign of positive numbers too.

    Returns:
        Formatted numbers, in the order of `values`.
    """
    finite = [value for value in values if math.isfinite(value)]
    spec = sign + _format_spec(*finite) if finite else ""
    return [f"{value:{spec}}" if math.isfinite(value) else format_number(value) for value in values]


def _format_spec(*values: float) -> str:
    """Return the format specification for the number with the largest absolute value; see `format_number`."""
    largest = max(map(abs, values))
    if largest == 0 or 1e-3 <= largest < 1000:
        return ".4f"
    return ",.0f" if 1000 <= largest < 1e5 else ".3g"


def format_percent(share: float) -> str:
    """Format a share as a whole percentage, such as `63 %`."""
    return f"{100 * share:.0f} %"


def format_lr(value: object) -> str:
    """Format a learning rate with three significant digits."""
    return f"{value:.3g}" if is_real(value) else format_value(value)


def format_bytes(value: object) -> str:
    """Format a size in the largest fitting binary unit, `576.2 KiB`."""
    if not is_finite(value):
        return format_value(value)
    for size, unit in _BYTE_UNITS:
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:,.0f} bytes"


def format_duration(seconds: object) -> str:
    """Format a duration in seconds, minutes or hours."""
    if not is_finite(seconds):
        return format_value(seconds)
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


_KEY_FORMATTERS = {"bytes": format_bytes, "seconds": format_duration, "learning_rate": format_lr, "seed": str}


def format_signal(number: int) -> str:
    """Format a signal as its name, such as SIGKILL, or as its number if it has none, like most real-time signals."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def is_real(value: object) -> TypeGuard[float]:
    """Return whether a value is a real number of Python or NumPy, finite or not, and no bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_finite(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite number."""
    return is_real(value) and math.isfinite(value)


def pluralize(number: int, singular: str, plural: str | None = None) -> str:
    """Format a count with its noun: `1 trial`, `2 trials`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def join_names(names: Iterable[str]) -> str:
    """Join names to `a, b and c`. There must be at least one name."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def limit_sentences(sentences: Sequence[str], table: str, limit: int = 6) -> list[str]:
    """Keep the first `limit` sentences, and refer to a table for the rest.

    Args:
        sentences: All sentences.
        table: Phrase for the table with the content of all sentences, such as `the table of scores`.
        limit: Largest number of sentences to keep.

    Returns:
        Sentences to show.
    """
    more = len(sentences) - limit
    rest = [f"{pluralize(more, 'more is', 'more are')} in {table}."] if more > 0 else []
    return [*sentences[:limit], *rest]


def escape_controls(text: str) -> str:
    """Escape control characters, marks for the direction of text, and lone surrogates, which can garble a terminal."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)


def quote_argument(argument: object) -> str:
    """Quote a path or a name for a command to paste into a shell."""
    text = str(argument)
    if not _CONTROLS.search(text) and text.isprintable():
        return shlex.quote(text)
    # Escape bytes, because bash, zsh and ksh have no other escape in common that works for every character.
    return "$'" + "".join(map(_escape_byte, os.fsencode(text))) + "'"


def _escape_byte(byte: int) -> str:
    return chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}"


def shorten(text: str, limit: int) -> str:
    """Shorten text to its first `limit` characters, and append the number of characters left out."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text) - limit:,} more characters)"


def truncate(text: str, limit: int, *, mark: str = "...") -> str:
    """Shorten text to `limit` characters, including the mark at the end."""
    return text if len(text) <= limit else f"{text[: limit - len(mark)]}{mark}"


def capitalize(text: str) -> str:
    """Return text with its first letter in upper case. Unlike `str.capitalize`, keep the case of the rest."""
    return text[:1].upper() + text[1:]


def downsample(points: Sequence[T], limit: int) -> list[T]:
    """Choose at most `limit` (2 or more) evenly spaced points, including the first and the last."""
    if len(points) <= limit:
        return list(points)
    return [points[round(i * (len(points) - 1) / (limit - 1))] for i in range(limit)]


def collapse_layer_index(module: str) -> str:
    """Replace the layer indices in a module's name by stars: `layers.*.self_attn.q_proj`."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", module)
