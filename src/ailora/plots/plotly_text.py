"""Texts and numbers as Plotly takes them."""

from __future__ import annotations

import html
import math


def text(said: str) -> str:
    """A text that Plotly shows as it stands: neither its markup nor its templates are in it."""
    return html.escape(said, quote=False).replace("%{", "%&#123;").replace("\n", "<br>")


def short(said: str, most: int) -> str:
    """A text of at most so many characters."""
    return said if len(said) <= most else f"{said[: most - 1]}…"


def rounded(value: float | None) -> float | None:
    """Six digits, which nobody can tell from more; None: it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")
