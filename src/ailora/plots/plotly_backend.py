"""Figures for the browser: charts as traces and layout of Plotly, in plain data.

Figures have the colours of the light theme. In the dark theme, a script looks up other colours by the index in
`meta.style`. Names and notes are escaped, because Plotly interprets text as a kind of HTML.
"""

from __future__ import annotations

import math

from ailora.plots.chart_spec import COLOURS, HATCHES, Axis, Chart, ForestPlot, Heatmap, Plot, Series
from ailora.plots.plotly_forest import forest_figure
from ailora.plots.plotly_traces import (
    MARGIN_PX,
    ROW_PX,
    Json,
    PlotlyFigure,
    axis_layout,
    error_bars,
    escape,
    hover_note,
    round_all,
    series_trace,
    shaded_rectangle,
    swap_axes,
)

#: Largest number of points for which a line has markers.
_MAX_MARKERS = 40
#: Largest total number of characters for which category names lie side by side. Longer names are listed vertically.
_MAX_CATEGORY_CHARS = 48
#: Height of a plot without its legend, of a row in the legend, and of a row in a heatmap.
_HEIGHT_PX, _LEGEND_ROW_PX, _HEATMAP_ROW_PX = 340, 22, 22
_MIN_HEATMAP_HEIGHT_PX = 300
#: Height of a series in a category that several series share, in rows of `ROW_PX`.
_ROWS_PER_SERIES = 0.6
#: Approximate number of names in a row of the legend.
_LEGEND_COLUMNS = 4


def plotly_figure(chart: Chart) -> PlotlyFigure:
    """Return the `data` and `layout` of a chart, as plain data without NaN."""
    match chart:
        case Heatmap():
            return _heatmap_figure(chart)
        case ForestPlot():
            return forest_figure(chart)
        case Plot():
            return _plot_figure(chart)


def count_missing(chart: Chart) -> int:
    """Return the number of non-finite values in a chart. None is an intended gap, and does not count."""
    # In a heatmap, NaN is an intended empty cell.
    if isinstance(chart, Heatmap):
        return 0
    if isinstance(chart, ForestPlot):
        return sum(not math.isfinite(row.value) for row in chart.rows)
    return sum(isinstance(y, float) and not math.isfinite(y) for series in chart.series for y in series.y)


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
        customdata = [[_category(chart, x), hover_note(series, i)] for i, x in enumerate(series.x)]
        template = _hover_template(chart, series, horizontal=horizontal)
        traces.append(trace | {"customdata": customdata, "hovertemplate": template})
    if horizontal:
        traces = [swap_axes(trace) for trace in traces]
    # A line at 0 of the y-axis separates gains from losses. On x-axes and in embeddings, 0 has no meaning.
    x = axis_layout(chart.x, [x for series in chart.series for x in series.x]) | {"zeroline": False}
    y = axis_layout(chart.y, []) | {"zeroline": chart.kind != "points" or bool(chart.x.categories)}
    height = MARGIN_PX + ROW_PX * len(chart.x.categories) * _rows_per_category(chart) if horizontal else _HEIGHT_PX
    legend_rows = math.ceil(len(chart.series) / _LEGEND_COLUMNS) if chart.has_legend else 0
    layout: Json = {
        "xaxis": y | {"nticks": 5, "tickangle": 0} if horizontal else x,
        "yaxis": _first_on_top(x, chart.x) | {"title": {"text": ""}} if horizontal else y,
        "showlegend": chart.has_legend,
        "height": height + _LEGEND_ROW_PX * legend_rows,
        "hovermode": "closest",
    }
    if chart.shaded is not None:
        # In the reference "paper", coordinates are shares of the plot's width or height.
        whole = (0.0, 1.0)
        if horizontal:
            rectangle = shaded_rectangle(whole, chart.shaded, xref="paper")
        else:
            rectangle = shaded_rectangle(chart.shaded, whole, yref="paper")
        layout["shapes"] = [rectangle]
    return {"data": traces, "layout": layout | ({"barmode": "group"} if chart.kind == "bars" else {})}


def _is_horizontal(chart: Plot) -> bool:
    """Return whether the category names, or a single name, are too long to be written side by side."""
    lengths = [len(name) for name in chart.x.categories]
    return bool(lengths) and (sum(lengths) > _MAX_CATEGORY_CHARS or max(lengths) > _MAX_CATEGORY_CHARS // 3)


def _rows_per_category(chart: Plot) -> float:
    """Return the height of a category in rows: 1, or more if several series share categories."""
    return max(1.0, len(chart.series) * _ROWS_PER_SERIES) if _share_categories(chart) else 1.0


def _share_categories(chart: Plot) -> bool:
    """Return whether any category has points of several series."""
    categories = [category for series in chart.series for category in {round(x) for x in series.x}]
    return len(set(categories)) < len(categories)


def _category_shift(chart: Plot, number: int) -> float:
    """Return the shift along x that separates a series from other series in the same categories."""
    if chart.kind != "points" or not chart.x.categories or not _share_categories(chart):
        return 0.0
    # Charts with fractional coordinates have shifted their points already.
    if any(x != round(x) for series in chart.series for x in series.x):
        return 0.0
    # The categories have a distance of 1. All series together take 0.6 of it, which leaves a gap between categories.
    return (number - (len(chart.series) - 1) / 2) * 0.6 / len(chart.series)


def _scatter_trace(chart: Plot, series: Series, shift: float) -> Json:
    is_line = chart.kind == "lines"
    has_markers = not is_line or len(series.x) <= _MAX_MARKERS
    # In an embedding, only the first series has filled markers, so that no points are hidden.
    is_open = chart.kind == "points" and not chart.x.categories and series is not chart.series[0]
    trace = series_trace(series, [x + shift for x in series.x], series.y) | {
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
    # The intervals of consecutive points of a line are drawn as a band, see `_band_traces`.
    isolated = [run[0] for run in series.interval_runs() if len(run) == 1]
    return trace | error_bars(series, isolated if is_line else range(len(series.x)))


def _bar_trace(series: Series, number: int) -> Json:
    pattern = {"shape": HATCHES[number % len(HATCHES)], "solidity": 0.25, "fillmode": "overlay"}
    trace = {"type": "bar", "marker": {"color": series.colour, "pattern": pattern}}
    return series_trace(series, series.x, series.y) | trace | error_bars(series, range(len(series.x)))


def _band_traces(series: Series) -> list[Json]:
    """Return the band of a line's intervals, or an empty list if no two consecutive points have intervals."""
    # A None between two runs ends the filled area, so that the band has a gap where intervals are missing.
    x: list[float | None] = []
    y: list[float | None] = []
    for run in (run for run in series.interval_runs() if len(run) > 1):
        x += [*(series.x[i] for i in (*run, *run[::-1])), None]
        y += [*(series.high[i] for i in run), *(series.low[i] for i in run[::-1]), None]
    if not x:
        return []
    band = series_trace(series, x[:-1], y[:-1]) | {
        "type": "scatter",
        "fill": "toself",
        "mode": "lines",
        "line": {"width": 0},
        "fillcolor": series.colour,
        # Nearly transparent, because the bands of several lines overlap.
        "opacity": 0.11,
        "hoverinfo": "skip",
        "showlegend": False,
        "meta": {"style": series.style % len(COLOURS), "band": True},
    }
    return [band]


def _category(chart: Plot, x: float) -> str:
    return escape(chart.x.categories[round(x)]) if chart.x.categories else ""


def _hover_template(chart: Plot, series: Series, *, horizontal: bool) -> str:
    x, y = ("y", "x") if horizontal else ("x", "y")
    number_format = _hover_format(is_whole=chart.has_whole_x)
    place = "%{customdata[0]}" if chart.x.categories else f"{escape(chart.x.label)}: %{{{x}:{number_format}}}"
    title = f"<b>{place}</b>" if series.name in chart.x.categories else f"<b>{escape(series.name)}</b><br>{place}"
    return f"{title}<br>{escape(chart.y.label)}: %{{{y}:.4~g}}%{{customdata[1]}}<extra></extra>"


def _hover_format(*, is_whole: bool) -> str:
    """Return the d3 format of a number: four significant digits, or all digits of a whole number."""
    # With four significant digits, 12345 would be shown as 1.235e+4.
    return ",d" if is_whole else ".4~g"


def _first_on_top(layout: Json, axis: Axis) -> Json:
    """Reverse an axis of categories, so that the first category is at the top."""
    return layout | {"range": [len(axis.categories) - 0.5, -0.5]}


def _heatmap_figure(chart: Heatmap) -> PlotlyFigure:
    rows, columns = range(len(chart.rows)), range(len(chart.columns))
    trace: Json = {
        "type": "heatmap",
        "z": [round_all(row) for row in chart.values],
        "text": [[escape(chart.cell_text(i, j)) for j in columns] for i in rows],
        "texttemplate": "%{text}",
        "colorscale": "Cividis",
        "colorbar": {"title": {"text": escape(chart.unit), "side": "right"}, "thickness": 10, "outlinewidth": 0},
        "xgap": 2,
        "ygap": 2,
        "hoverongaps": False,
        "customdata": [[[escape(row), escape(column)] for column in chart.columns] for row in chart.rows],
        "hovertemplate": f"{escape(chart.row_label)}: %{{customdata[0]}}<br>{escape(chart.column_label)}: "
        f"%{{customdata[1]}}<br>{escape(chart.unit)}: %{{z:{_hover_format(is_whole=chart.has_whole_values)}}}"
        "<extra></extra>",
    }
    bare = {"showgrid": False, "zeroline": False}
    x, y = Axis(chart.column_label, categories=chart.columns), Axis(chart.row_label, categories=chart.rows)
    layout: Json = {
        "xaxis": axis_layout(x, []) | bare,
        "yaxis": _first_on_top(axis_layout(y, []), y) | bare,
        "height": max(_MIN_HEATMAP_HEIGHT_PX, MARGIN_PX + _HEATMAP_ROW_PX * len(chart.rows)),
        "showlegend": False,
    }
    return {"data": [trace], "layout": layout}
