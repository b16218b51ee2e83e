"""Figures for the browser: charts as traces and layout of Plotly, in plain data.

Colours are those of a light page. In the dark theme, a script chooses the colour with the index in `meta.style`. Text
from outside is escaped, because Plotly interprets text as a kind of HTML.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TypedDict

from ailora.formatting import format_number
from ailora.plots.chart_spec import (
    COLOURS,
    HATCHES,
    SHADE_ALPHA,
    SHADE_COLOUR,
    Axis,
    Chart,
    ForestPlot,
    ForestRow,
    Heatmap,
    Plot,
    Series,
)

#: A trace, an axis or a layout of Plotly.
Json = dict[str, object]


class PlotlyFigure(TypedDict):
    """Arguments of `Plotly.newPlot`."""

    data: list[Json]
    layout: Json


#: Largest number of points in a line with markers.
_MAX_MARKERS = 40
#: Largest number of values for which a logarithmic axis has ticks at the values instead of round numbers.
_MAX_VALUE_TICKS = 9
#: Largest total number of characters for which category names are side by side. Longer names are listed vertically.
_MAX_CATEGORY_CHARS = 48
#: Longest names at ticks and in the legend, in characters. Hovering shows the whole name.
_MAX_TICK_CHARS, _MAX_LEGEND_CHARS = 26, 48
_HEIGHT_PX, _ROW_PX, _MARGIN_PX, _LEGEND_ROW_PX = 340, 30, 90, 22


def plotly_figure(chart: Chart) -> PlotlyFigure:
    """Return the `data` and `layout` of a chart, plain data without NaN."""
    match chart:
        case Heatmap():
            return _heatmap_figure(chart)
        case ForestPlot():
            return _forest_figure(chart)
        case Plot():
            return _plot_figure(chart)


def count_missing(chart: Chart) -> int:
    """Return the number of non-finite values in a chart, without intended gaps, which are None."""
    if isinstance(chart, Heatmap):
        return 0
    if isinstance(chart, ForestPlot):
        return sum(not math.isfinite(row.value) for row in chart.rows)
    return sum(isinstance(y, float) and not math.isfinite(y) for series in chart.series for y in series.y)


def escape(text: str) -> str:
    """Escape text, so that Plotly interprets no markup and no template `%{...}` in the text."""
    return html.escape(text, quote=False).replace("%{", "%&#123;").replace("\n", "<br>")


def round_digits(value: float | None) -> float | None:
    """Return a value rounded to six significant digits, or None if the value is not finite."""
    # No chart shows more digits, and fewer digits keep pages small.
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _round_all(values: Iterable[float | None]) -> list[float | None]:
    return [round_digits(value) for value in values]


def _truncate(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _plot_figure(chart: Plot) -> PlotlyFigure:
    horizontal = _is_horizontal(chart)
    traces: list[Json] = []
    for number, series in enumerate(chart.series):
        if chart.kind == "bars":
            trace = _bar_trace(series, number)
        else:
            trace = _scatter_trace(chart, series, _category_shift(chart, number))
        if chart.kind == "lines":
            traces += _band_traces(series)
        customdata = [[_category(chart, x), _hover_note(series, i)] for i, x in enumerate(series.x)]
        template = _hover_template(chart, series, horizontal=horizontal)
        traces.append(trace | {"customdata": customdata, "hovertemplate": template})
    if horizontal:
        traces = [_swap_axes(trace) for trace in traces]
    # On the y-axis, a line at 0 separates gains from losses. In embeddings and on x-axes, 0 has no meaning.
    x = _axis_layout(chart.x, [x for series in chart.series for x in series.x]) | {"zeroline": False}
    y = _axis_layout(chart.y, []) | {"zeroline": chart.kind != "points" or bool(chart.x.categories)}
    height = _MARGIN_PX + _ROW_PX * len(chart.x.categories) * _rows_per_category(chart) if horizontal else _HEIGHT_PX
    layout: Json = {
        "xaxis": y | {"nticks": 5, "tickangle": 0} if horizontal else x,
        "yaxis": _first_on_top(x, chart.x) | {"title": {"text": ""}} if horizontal else y,
        "showlegend": chart.has_legend,
        "height": height + _LEGEND_ROW_PX * math.ceil(len(chart.series) / 4 if chart.has_legend else 0),
        "hovermode": "closest",
    }
    if chart.shaded is not None:
        whole = (0.0, 1.0)
        layout["shapes"] = [
            _shade(whole, chart.shaded, xref="paper") if horizontal else _shade(chart.shaded, whole, yref="paper")
        ]
    return {"data": traces, "layout": layout | ({"barmode": "group"} if chart.kind == "bars" else {})}


def _is_horizontal(chart: Plot) -> bool:
    """Return whether category names are too long to be written side by side."""
    lengths = [len(name) for name in chart.x.categories]
    return bool(lengths) and (sum(lengths) > _MAX_CATEGORY_CHARS or max(lengths) > _MAX_CATEGORY_CHARS // 3)


def _rows_per_category(chart: Plot) -> float:
    """Return the height of a category in rows: a single row, or more if several series share the category."""
    return max(1.0, len(chart.series) * 0.6) if _share_categories(chart) else 1.0


def _share_categories(chart: Plot) -> bool:
    """Return whether any category has points of several series."""
    categories = [category for series in chart.series for category in {round(x) for x in series.x}]
    return len(set(categories)) < len(categories)


def _category_shift(chart: Plot, number: int) -> float:
    """Return the shift that separates the points of a series from further points in the same categories."""
    if chart.kind != "points" or not chart.x.categories or not _share_categories(chart):
        return 0.0
    # Charts with fractional coordinates have shifted their points already.
    if any(x != round(x) for series in chart.series for x in series.x):
        return 0.0
    return (number - (len(chart.series) - 1) / 2) * 0.6 / len(chart.series)


def _series_trace(series: Series, x: Iterable[float | None], y: Iterable[float | None]) -> Json:
    return {
        "name": escape(_truncate(series.name, _MAX_LEGEND_CHARS)),
        "x": _round_all(x),
        "y": _round_all(y),
        "meta": {"style": series.style % len(COLOURS)},
        # The legend shows and hides the band of a line together with the line.
        "legendgroup": escape(series.name),
    }


def _scatter_trace(chart: Plot, series: Series, shift: float) -> Json:
    is_line = chart.kind == "lines"
    has_markers = not is_line or len(series.x) <= _MAX_MARKERS
    # In an embedding, only the first series has filled markers, so that no points are hidden.
    is_open = chart.kind == "points" and not chart.x.categories and series is not chart.series[0]
    trace = _series_trace(series, [x + shift for x in series.x], series.y) | {
        "type": "scatter",
        "mode": "+".join(["lines"] * is_line + ["markers"] * has_markers),
        "line": {"color": series.colour, "width": 2, "dash": series.dash},
        "marker": {
            "color": series.colour,
            "size": 7 if is_line else 9,
            "symbol": series.marker + ("-open" if series.repeats_colour or is_open else ""),
        },
        "connectgaps": False,
    }
    # If the neighbours of a point have no interval, the band has no width there, and the point gets an error bar.
    isolated = [run[0] for run in _interval_runs(series) if len(run) == 1]
    return trace | _error_bars(series, isolated if is_line else range(len(series.x)))


def _bar_trace(series: Series, number: int) -> Json:
    pattern = {"shape": HATCHES[number % len(HATCHES)], "solidity": 0.25, "fillmode": "overlay"}
    trace = {"type": "bar", "marker": {"color": series.colour, "pattern": pattern}}
    return _series_trace(series, series.x, series.y) | trace | _error_bars(series, range(len(series.x)))


def _error_bars(series: Series, points: Iterable[int]) -> Json:
    """Return error bars for the points (indices) with intervals."""
    points = [i for i in points if series.has_interval(i)]
    if not points:
        return {}
    up, down = ([0.0] * len(series.x) for _ in range(2))
    for i in points:
        up[i], down[i] = series.high[i] - series.y[i], series.y[i] - series.low[i]
    bars = {"array": _round_all(up), "arrayminus": _round_all(down)}
    return {"error_y": {"type": "data", "symmetric": False, **bars, "thickness": 1.6}}


def _interval_runs(series: Series) -> list[list[int]]:
    """Return the runs of neighbouring points with intervals, as lists of indices."""
    return [list(run) for has_interval, run in groupby(range(len(series.x)), series.has_interval) if has_interval]


def _band_traces(series: Series) -> list[Json]:
    """Return the area of a line's intervals, or nothing without neighbouring intervals."""
    # A None between two runs ends the area, so that the band has a gap where intervals are missing.
    x: list[float | None] = []
    y: list[float | None] = []
    for run in (run for run in _interval_runs(series) if len(run) > 1):
        x += [*(series.x[i] for i in (*run, *run[::-1])), None]
        y += [*(series.high[i] for i in run), *(series.low[i] for i in run[::-1]), None]
    if not x:
        return []
    band = _series_trace(series, x[:-1], y[:-1]) | {
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
    """Return the text below a value on hover: the interval and the note."""
    interval = ""
    if series.has_interval(i):
        interval = f"<br>from {format_number(series.low[i])} to {format_number(series.high[i])}"
    return interval + (f"<br>{escape(series.notes[i])}" if series.notes and series.notes[i] else "")


def _hover_template(chart: Plot, series: Series, *, horizontal: bool) -> str:
    x, y = ("y", "x") if horizontal else ("x", "y")
    place = "%{customdata[0]}" if chart.x.categories else f"{escape(chart.x.label)}: %{{{x}:.4~g}}"
    title = f"<b>{place}</b>" if series.name in chart.x.categories else f"<b>{escape(series.name)}</b><br>{place}"
    return f"{title}<br>{escape(chart.y.label)}: %{{{y}:.4~g}}%{{customdata[1]}}<extra></extra>"


def _axis_layout(axis: Axis, values: Sequence[float]) -> Json:
    """Return the layout of an axis, whose ticks may be at `values`."""
    layout: Json = {"title": {"text": escape(axis.label)}, "automargin": True}
    if axis.categories:
        names = [escape(_truncate(name, _MAX_TICK_CHARS)) for name in axis.categories]
        return layout | {"tickvals": list(range(len(names))), "ticktext": names, "range": [-0.5, len(names) - 0.5]}
    if axis.log:
        # By default, Plotly writes only a digit between powers of ten: a small 5 for 0.05.
        layout |= {"type": "log", "tickformat": ".3~g"}
        distinct = sorted(set(values))
        if 0 < len(distinct) <= _MAX_VALUE_TICKS:
            layout |= {"tickvals": distinct, "ticktext": [f"{value:.3g}" for value in distinct]}
    return layout


def _first_on_top(layout: Json, axis: Axis) -> Json:
    """Reverse an axis of categories, so that the first category is at the top."""
    return layout | {"range": [len(axis.categories) - 0.5, -0.5]}


_SWAPPED = {"x": "y", "y": "x", "error_y": "error_x"}


def _swap_axes(trace: Json) -> Json:
    swapped = {_SWAPPED.get(key, key): value for key, value in trace.items()}
    return swapped | ({"orientation": "h"} if trace["type"] == "bar" else {})


_VERDICT_CHAR_PX = 7.2


def _forest_figure(chart: ForestPlot) -> PlotlyFigure:
    lines = chart.lines
    placed = [(y, line) for y, line in enumerate(lines) if isinstance(line, ForestRow)]
    names = [
        escape(_truncate(line.label, _MAX_TICK_CHARS)) if isinstance(line, ForestRow) else f"<b>{escape(line)}</b>"
        for line in lines
    ]
    layout: Json = {
        "xaxis": _axis_layout(Axis(chart.x_label), []) | {"range": _round_all(chart.limits), "nticks": 5},
        "yaxis": {
            "tickvals": list(range(len(lines))),
            "ticktext": names,
            "range": [len(lines) - 0.5, -0.5],
            "automargin": True,
            "showgrid": False,
            "zeroline": False,
            "title": {"text": ""},
        },
        "shapes": [
            _shade((-row.margin, row.margin), (y - 0.5, y + 0.5)) for y, row in placed if row.margin is not None
        ],
        "annotations": [_verdict_annotation(y, row.verdict) for y, row in placed],
        "margin": {"r": 16 + round(_VERDICT_CHAR_PX * max((len(row.verdict) for _, row in placed), default=0))},
        "showlegend": False,
        "height": _MARGIN_PX + _ROW_PX * len(lines),
        "hovermode": "closest",
    }
    return {"data": [_forest_trace(chart, y, row) for y, row in placed], "layout": layout}


def _forest_trace(chart: ForestPlot, y: int, row: ForestRow) -> Json:
    name = ", ".join(part for part in (row.group, row.label) if part)
    series = Series(
        name,
        [float(y)],
        [row.value],
        low=[math.nan if row.low is None else row.low],
        high=[math.nan if row.high is None else row.high],
        notes=[row.note],
        style=row.style,
    )
    open_marker: Json = {} if row.is_decided else {"line": {"width": 2}}
    trace: Json = {
        "type": "scatter",
        "mode": "markers",
        "marker": {
            "color": series.colour,
            "size": 10,
            "symbol": series.marker + ("" if row.is_decided else "-open"),
            **open_marker,
        },
        "customdata": [[escape(row.verdict), _hover_note(series, 0)]],
        "hovertemplate": f"<b>{escape(name)}</b>, %{{customdata[0]}}<br>"
        f"{escape(chart.x_label)}: %{{x:.4~g}}%{{customdata[1]}}<extra></extra>",
    }
    return _swap_axes(_series_trace(series, series.x, series.y) | trace | _error_bars(series, [0]))


def _shade(x: tuple[float, float], y: tuple[float, float], **refs: str) -> Json:
    """Return a shaded rectangle; `yref="paper"` reads its y as shares of the height, likewise `xref`."""
    ends = {"x0": round_digits(x[0]), "x1": round_digits(x[1]), "y0": y[0], "y1": y[1]}
    fill = {"fillcolor": SHADE_COLOUR, "opacity": SHADE_ALPHA, "line": {"width": 0}}
    return {"type": "rect", "layer": "below", **fill, **ends, **refs}


def _verdict_annotation(y: int, verdict: str) -> Json:
    place = {"xref": "paper", "x": 1, "xanchor": "left", "xshift": 8, "yref": "y", "y": y, "yanchor": "middle"}
    return {"text": escape(verdict), "showarrow": False, "align": "left", **place}


def _heatmap_figure(chart: Heatmap) -> PlotlyFigure:
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
        "xaxis": _axis_layout(x, []) | bare,
        "yaxis": _first_on_top(_axis_layout(y, []), y) | bare,
        "height": max(_HEIGHT_PX - 40, _MARGIN_PX + 22 * len(chart.rows)),
        "showlegend": False,
    }
    return {"data": [trace], "layout": layout}
