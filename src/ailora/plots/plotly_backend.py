"""Charts for the browser: plain data of traces and layout, as Plotly draws them.

Colours are those of the light page; `meta.style` is the index of a trace's colour, so that the page's script can
exchange it. All text from outside is escaped: Plotly takes its texts for a kind of HTML.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TypedDict

from ailora.formatting import format_number
from ailora.plots.chart_spec import COLOURS, HATCHES, Axis, Chart, Heatmap, Plot, Series

#: A trace, an axis or a layout.
Json = dict[str, object]


class PlotlyFigure(TypedDict):
    """A figure, as `Plotly.newPlot` takes it."""

    data: list[Json]
    layout: Json


#: Points above which a line has no marker at each point.
_MAX_MARKERS = 40
#: Most ticks that stand at the values themselves rather than at round numbers.
_MAX_VALUE_TICKS = 9
#: Characters of names beside each other, from which on they stand below each other.
_MAX_NAMES_WIDTH = 48
#: Characters of a name beside an axis, and in a legend; hovering shows more.
_MAX_TICK_LENGTH, _MAX_NAME_LENGTH = 26, 48
_HEIGHT_PX, _ROW_PX, _MARGIN_PX, _LEGEND_ROW_PX = 340, 30, 90, 22


def plotly_figure(chart: Chart) -> PlotlyFigure:
    """Convert a chart to `data` and `layout`, JSON without NaN."""
    return _heatmap(chart) if isinstance(chart, Heatmap) else _plot(chart)


def count_missing(chart: Chart) -> int:
    """Count the values of a chart that are not finite; a gap on purpose, None, is not counted."""
    if isinstance(chart, Heatmap):
        return 0
    return sum(isinstance(y, float) and not math.isfinite(y) for series in chart.series for y in series.y)


def escape(text: str) -> str:
    """Escape a text so that Plotly shows it as it stands: neither its markup nor its templates are in it."""
    return html.escape(text, quote=False).replace("%{", "%&#123;").replace("\n", "<br>")


def round_digits(value: float | None) -> float | None:
    """Round to six digits, which nobody can tell from more. Returns None if the value is not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _round_all(values: Iterable[float | None]) -> list[float | None]:
    return [round_digits(value) for value in values]


def _truncate(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _plot(chart: Plot) -> PlotlyFigure:
    horizontal = _is_horizontal(chart)
    traces: list[Json] = []
    for number, series in enumerate(chart.series):
        trace = _bars(series, number) if chart.kind == "bars" else _line(chart, series, _shift(chart, number))
        if chart.kind == "lines":
            traces += _band(series)
        customdata = [[_category(chart, x), _hover_note(series, i)] for i, x in enumerate(series.x)]
        template = _hover_template(chart, series, horizontal=horizontal)
        traces.append(trace | {"customdata": customdata, "hovertemplate": template})
    if horizontal:
        traces = [_swap_axes(trace) for trace in traces]
    # A line at 0 means something among values only.
    x = _axis(chart.x, [x for series in chart.series for x in series.x]) | {"zeroline": False}
    y = _axis(chart.y, []) | {"zeroline": chart.kind != "points" or bool(chart.x.categories)}
    height = _MARGIN_PX + _ROW_PX * len(chart.x.categories) * _rows_per_category(chart) if horizontal else _HEIGHT_PX
    layout: Json = {
        "xaxis": y | {"nticks": 5, "tickangle": 0} if horizontal else x,
        "yaxis": _downwards(x, chart.x) | {"title": {"text": ""}} if horizontal else y,
        "showlegend": chart.has_legend,
        "height": height + _LEGEND_ROW_PX * math.ceil(len(chart.series) / 4 if chart.has_legend else 0),
        "hovermode": "closest",
    }
    return {"data": traces, "layout": layout | ({"barmode": "group"} if chart.kind == "bars" else {})}


def _is_horizontal(chart: Plot) -> bool:
    """Whether categories stand below each other, as there is no room for their names beside each other."""
    names = chart.x.categories
    return bool(names) and (sum(map(len, names)) > _MAX_NAMES_WIDTH or max(map(len, names)) > _MAX_NAMES_WIDTH // 3)


def _rows_per_category(chart: Plot) -> float:
    """Count the rows that a category needs: one series each, or all of them beside each other."""
    return max(1.0, len(chart.series) * 0.6) if _share_categories(chart) else 1.0


def _share_categories(chart: Plot) -> bool:
    """Whether several series have points at one category."""
    places = [place for series in chart.series for place in {round(x) for x in series.x}]
    return len(set(places)) < len(places)


def _shift(chart: Plot, number: int) -> float:
    """Shift the points of a series beside others of their category, where their x does not do so already."""
    if chart.kind != "points" or not chart.x.categories or not _share_categories(chart):
        return 0.0
    if any(x != round(x) for series in chart.series for x in series.x):
        return 0.0
    return (number - (len(chart.series) - 1) / 2) * 0.6 / len(chart.series)


def _trace(series: Series, x: Iterable[float | None], y: Iterable[float | None]) -> Json:
    return {
        "name": escape(_truncate(series.name, _MAX_NAME_LENGTH)),
        "x": _round_all(x),
        "y": _round_all(y),
        "meta": {"style": series.style % len(COLOURS)},
        "legendgroup": escape(series.name),
    }


def _line(chart: Plot, series: Series, shift: float) -> Json:
    is_line = chart.kind == "lines"
    has_markers = not is_line or len(series.x) <= _MAX_MARKERS
    # What lies below an open marker is seen through it.
    covers = chart.kind == "points" and not chart.x.categories and series is not chart.series[0]
    trace = _trace(series, [x + shift for x in series.x], series.y) | {
        "type": "scatter",
        "mode": "+".join(["lines"] * is_line + ["markers"] * has_markers),
        "line": {"color": series.colour, "width": 2, "dash": series.dash},
        "marker": {
            "color": series.colour,
            "size": 7 if is_line else 9,
            "symbol": series.marker + ("-open" if series.repeats_colour or covers else ""),
        },
        "connectgaps": False,
    }
    # A band has no width at a point whose neighbours have no interval.
    alone = [run[0] for run in _interval_runs(series) if len(run) == 1]
    return trace | _error_bars(series, alone if is_line else range(len(series.x)))


def _bars(series: Series, number: int) -> Json:
    pattern = {"shape": HATCHES[number % len(HATCHES)], "solidity": 0.25, "fillmode": "overlay"}
    trace = {"type": "bar", "marker": {"color": series.colour, "pattern": pattern}}
    return _trace(series, series.x, series.y) | trace | _error_bars(series, range(len(series.x)))


def _error_bars(series: Series, places: Iterable[int]) -> Json:
    """Draw the intervals at some places as bars."""
    marked = [i for i in places if series.has_interval(i)]
    if not marked:
        return {}
    up, down = ([0.0] * len(series.x) for _ in range(2))
    for i in marked:
        up[i], down[i] = series.high[i] - series.y[i], series.y[i] - series.low[i]
    bars = {"array": _round_all(up), "arrayminus": _round_all(down)}
    return {"error_y": {"type": "data", "symmetric": False, **bars, "thickness": 1.6}}


def _interval_runs(series: Series) -> list[list[int]]:
    """Find the runs of neighbouring points that have intervals."""
    return [list(run) for has_interval, run in groupby(range(len(series.x)), series.has_interval) if has_interval]


def _band(series: Series) -> list[Json]:
    """Draw the intervals of a line as an area around it."""
    x: list[float | None] = []
    y: list[float | None] = []
    for run in (run for run in _interval_runs(series) if len(run) > 1):
        x += [*(series.x[i] for i in (*run, *run[::-1])), None]
        y += [*(series.high[i] for i in run), *(series.low[i] for i in run[::-1]), None]
    if not x:
        return []
    band = _trace(series, x[:-1], y[:-1]) | {
        "type": "scatter",
        "fill": "toself",
        "mode": "lines",
        "line": {"width": 0},
        "fillcolor": series.colour,
        "opacity": 0.11,
        "hoverinfo": "skip",
        "showlegend": False,
        "meta": {"style": series.style % len(COLOURS), "band": True},
    }
    return [band]


def _category(chart: Plot, x: float) -> str:
    return escape(chart.x.categories[round(x)]) if chart.x.categories else ""


def _hover_note(series: Series, i: int) -> str:
    """Write what hovering shows below a value: its interval and its note."""
    interval = ""
    if series.has_interval(i):
        interval = f"<br>from {format_number(series.low[i])} to {format_number(series.high[i])}"
    return interval + (f"<br>{escape(series.notes[i])}" if series.notes and series.notes[i] else "")


def _hover_template(chart: Plot, series: Series, *, horizontal: bool) -> str:
    x, y = ("y", "x") if horizontal else ("x", "y")
    place = "%{customdata[0]}" if chart.x.categories else f"{escape(chart.x.label)}: %{{{x}:.4~g}}"
    title = f"<b>{place}</b>" if series.name in chart.x.categories else f"<b>{escape(series.name)}</b><br>{place}"
    return f"{title}<br>{escape(chart.y.label)}: %{{{y}:.4~g}}%{{customdata[1]}}<extra></extra>"


def _axis(axis: Axis, values: Sequence[float]) -> Json:
    layout: Json = {"title": {"text": escape(axis.label)}, "automargin": True}
    if axis.categories:
        names = [escape(_truncate(name, _MAX_TICK_LENGTH)) for name in axis.categories]
        return layout | {"tickvals": list(range(len(names))), "ticktext": names, "range": [-0.5, len(names) - 0.5]}
    if axis.log:
        # Whole numbers at all ticks: 0.05, and not a small 5.
        layout |= {"type": "log", "tickformat": ".3~g"}
        distinct = sorted(set(values))
        if 0 < len(distinct) <= _MAX_VALUE_TICKS:
            layout |= {"tickvals": distinct, "ticktext": [f"{value:.3g}" for value in distinct]}
    return layout


def _downwards(layout: Json, axis: Axis) -> Json:
    """Turn an axis of categories so that the first one stands at the top."""
    return layout | {"range": [len(axis.categories) - 0.5, -0.5]}


_SWAPPED = {"x": "y", "y": "x", "error_y": "error_x"}


def _swap_axes(trace: Json) -> Json:
    swapped = {_SWAPPED.get(key, key): value for key, value in trace.items()}
    return swapped | ({"orientation": "h"} if trace["type"] == "bar" else {})


def _heatmap(chart: Heatmap) -> PlotlyFigure:
    rows, columns = range(len(chart.rows)), range(len(chart.columns))
    trace: Json = {
        "type": "heatmap",
        "z": [_round_all(row) for row in chart.values],
        "text": [[escape(chart.cell_text(i, j)) for j in columns] for i in rows],
        "texttemplate": "%{text}",
        "colorscale": "Cividis",
        "colorbar": {"title": {"text": escape(chart.unit), "side": "right"}, "thickness": 10, "outlinewidth": 0},
        "xgap": 2,
        "ygap": 2,
        "hoverongaps": False,
        "customdata": [[[escape(row), escape(column)] for column in chart.columns] for row in chart.rows],
        "hovertemplate": f"{escape(chart.row_label)}: %{{customdata[0]}}<br>{escape(chart.column_label)}: "
        f"%{{customdata[1]}}<br>{escape(chart.unit)}: %{{z:.4~g}}<extra></extra>",
    }
    bare = {"showgrid": False, "zeroline": False}
    x, y = Axis(chart.column_label, categories=chart.columns), Axis(chart.row_label, categories=chart.rows)
    layout: Json = {
        "xaxis": _axis(x, []) | bare,
        "yaxis": _downwards(_axis(y, []), y) | bare,
        "height": max(_HEIGHT_PX - 40, _MARGIN_PX + 22 * len(chart.rows)),
        "showlegend": False,
    }
    return {"data": [trace], "layout": layout}
