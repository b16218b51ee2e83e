"""Values as a reader sees them. Nothing here fails on what a damaged file may hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import yaml

Point = TypeVar("Point")

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def shown(value: Any) -> str:
    """Any value in a few characters: numbers with four digits, what is no number in words."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return figure(value)
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def figure(value: float, sign: str = "") -> str:
    """A number with four digits; what is not one is said in words."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:{sign}.4f}" if abs(value) < 1000 else f"{value:{sign},.0f}"
    return f"{value:{sign}.3g}"


def rate(value: Any) -> str:
    """A learning rate."""
    return f"{value:.3g}" if isinstance(value, int | float) else shown(value)


def size(value: Any) -> str:
    """Bytes in the unit that suits them."""
    if not is_number(value):
        return shown(value)
    for unit, name in _UNITS:
        if value >= unit:
            return f"{value / unit:,.1f} {name}"
    return f"{value:,.0f} bytes"


def seconds(value: Any) -> str:
    """A duration."""
    if not is_number(value):
        return shown(value)
    if value < 100:
        return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
    minutes = value / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def is_real(value: Any) -> bool:
    """Whether it is a number, finite or not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return is_real(value) and math.isfinite(value)


def counted(number: int, one: str, several: str | None = None) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def shortened(text: str, most: int) -> str:
    """A text of at most so many characters; where it was longer, it says so."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text) - most:,} more characters)"


def as_yaml(value: Any) -> str:
    """Plain data as YAML."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110)


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """Evenly chosen points, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]
