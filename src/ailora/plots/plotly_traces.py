"""Traces, axes and text of Plotly figures, in plain data."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import TypedDict

from ailora.formatting import format_number, truncate
from ailora.plots.chart_spec import COLOURS, SHADE_ALPHA, SHADE_COLOUR, Axis, Series

#: A trace, an axis or a layout of Plotly.
Json = dict[str, object]

#: Height of a row in a chart with vertically listed names, and the total height of the margins above and below them.
ROW_PX, MARGIN_PX = 30, 90
#: Longest names at ticks and in the legend, in characters. Hovering shows the whole name.
_MAX_TICK_CHARS, _MAX_LEGEND_CHARS = 26, 48
#: Largest number of distinct values for which a logarithmic axis has its ticks at the values, not at round numbers.
_MAX_VALUE_TICKS = 9
_SWAPPED = {"x": "y", "y": "x", "error_y": "error_x"}


class PlotlyFigure(TypedDict):
    """Arguments of `Plotly.newPlot`."""

    data: list[Json]
    layout: Json


def escape(text: str) -> str:
    """Escape text, so that Plotly shows markup, templates `%{...}` and line breaks as they are in the text."""
    return html.escape(text, quote=False).replace("%{", "%&#123;").replace("\n", "<br>")


def round_digits(value: float | None) -> float | None:
    """Return a value rounded to six significant digits, or None if the value is not finite.

    Whole numbers, such as steps and counts, keep all digits.
    """
    if value is None or not math.isfinite(value):
        return None
    # No chart shows more digits, and fewer digits keep pages small.
    return float(value) if float(value).is_integer() else float(f"{value:.6g}")


def round_all(values: Iterable[float | None]) -> list[float | None]:
    """Return values rounded by `round_digits`."""
    return [round_digits(value) for value in values]


def escape_name(name: str, limit: int = _MAX_TICK_CHARS) -> str:
    """Escape a name, and cut a name longer than `limit` characters, with an ellipsis as its last character."""
    return escape(truncate(name, limit, mark="…"))


def series_trace(series: Series, x: Iterable[float | None], y: Iterable[float | None]) -> Json:
    """Return the part of a trace that all kinds of charts share."""
    return {
        "name": escape_name(series.name, _MAX_LEGEND_CHARS),
        "x": round_all(x),
        "y": round_all(y),
        # The page's script colours the trace by this index, in the colours of the light or the dark theme.
        "meta": {"style": series.style % len(COLOURS)},
        # The legend shows and hides the band of a line together with the line.
        "legendgroup": escape(series.name),
    }


def error_bars(series: Series, points: Iterable[int]) -> Json:
    """Return the key `error_y` of a trace, with the intervals of the points with the given indices.

    Returns an empty dict if none of these points has an interval.
    """
    points = [i for i in points if series.has_interval(i)]
    if not points:
        return {}
    up, down = ([0.0] * len(series.x) for _ in range(2))
    for i in points:
        up[i], down[i] = series.high[i] - series.y[i], series.y[i] - series.low[i]
    bars = {"array": round_all(up), "arrayminus": round_all(down)}
    return {"error_y": {"type": "data", "symmetric": False, **bars, "thickness": 1.6}}


def hover_note(series: Series, i: int) -> str:
    """Return the text below a value on hover: the interval and the note."""
    interval = ""
    if series.has_interval(i):
        interval = f"<br>from {format_number(series.low[i])} to {format_number(series.high[i])}"
    return interval + (f"<br>{escape(series.notes[i])}" if series.notes and series.notes[i] else "")


def axis_layout(axis: Axis, values: Sequence[float]) -> Json:
    """Return the layout of an axis. On a logarithmic axis with few `values`, ticks are at these values."""
    layout: Json = {"title": {"text": escape(axis.label)}, "automargin": True}
    if axis.categories:
        names = [escape_name(name) for name in axis.categories]
        return layout | {"tickvals": list(range(len(names))), "ticktext": names, "range": [-0.5, len(names) - 0.5]}
    if axis.log:
        # By default, Plotly labels ticks between powers of ten with a single digit: 0.05 would be labelled "5".
        layout |= {"type": "log", "tickformat": ".3~g"}
        distinct = sorted(set(values))
        if 0 < len(distinct) <= _MAX_VALUE_TICKS:
            layout |= {"tickvals": distinct, "ticktext": [f"{value:.3g}" for value in distinct]}
    return layout


def swap_axes(trace: Json) -> Json:
    """Return a trace with x and y exchanged, for charts with vertically listed names."""
    swapped = {_SWAPPED.get(key, key): value for key, value in trace.items()}
    return swapped | ({"orientation": "h"} if trace["type"] == "bar" else {})


def shaded_rectangle(x: tuple[float, float], y: tuple[float, float], **refs: str) -> Json:
    """Return a shaded rectangle.

    Args:
        x: Ends along the x-axis.
        y: Ends along the y-axis.
        **refs: `xref="paper"` if `x` holds shares of the plot's width; `yref="paper"` if `y` holds shares of its
            height.
    """
    ends = dict(zip(("x0", "x1", "y0", "y1"), round_all((*x, *y)), strict=True))
    fill = {"fillcolor": SHADE_COLOUR, "opacity": SHADE_ALPHA, "line": {"width": 0}}
    return {"type": "rect", "layer": "below", **fill, **ends, **refs}
