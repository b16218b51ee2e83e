"""Forest plots as Plotly figures."""

from __future__ import annotations

import math

from ailora.plots.chart_spec import Axis, ForestPlot, ForestRow, Series
from ailora.plots.plotly_traces import (
    MARGIN_PX,
    ROW_PX,
    Json,
    PlotlyFigure,
    axis_layout,
    error_bars,
    escape,
    escape_name,
    hover_note,
    round_all,
    series_trace,
    shaded_rectangle,
    swap_axes,
)

#: Width of a character in a verdict. Plotly reserves no space for annotations, so the longest verdict sets the margin.
_VERDICT_CHAR_PX = 7.2


def forest_figure(chart: ForestPlot) -> PlotlyFigure:
    """Return the `data` and `layout` of a forest plot, with a trace for each row."""
    # Text lines of the chart: rows, and headings of groups as strings.
    lines = chart.lines
    rows = [(y, line) for y, line in enumerate(lines) if isinstance(line, ForestRow)]
    tick_labels = [
        escape_name(line.label) if isinstance(line, ForestRow) else f"<b>{escape(line)}</b>" for line in lines
    ]
    layout: Json = {
        "xaxis": axis_layout(Axis(chart.x_label), []) | {"range": round_all(chart.limits), "nticks": 5},
        "yaxis": {
            "tickvals": list(range(len(lines))),
            "ticktext": tick_labels,
            "range": [len(lines) - 0.5, -0.5],
            "automargin": True,
            "showgrid": False,
            "zeroline": False,
            "title": {"text": ""},
        },
        # The range of equivalence of each row.
        "shapes": [
            shaded_rectangle((-row.margin, row.margin), (y - 0.5, y + 0.5)) for y, row in rows if row.margin is not None
        ],
        "annotations": [_verdict_annotation(y, row.verdict) for y, row in rows],
        # 16 px: 8 px for the shift of `_verdict_annotation`, and 8 px at the right.
        "margin": {"r": 16 + round(_VERDICT_CHAR_PX * max((len(row.verdict) for _, row in rows), default=0))},
        "showlegend": False,
        "height": MARGIN_PX + ROW_PX * len(lines),
        "hovermode": "closest",
    }
    return {"data": [_forest_trace(chart, y, row) for y, row in rows], "layout": layout}


def _forest_trace(chart: ForestPlot, y: int, row: ForestRow) -> Json:
    name = ", ".join(part for part in (row.group, row.label) if part)
    series = Series(
        name,
        x=[float(y)],
        y=[row.value],
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
        "customdata": [[escape(row.verdict), hover_note(series, 0)]],
        "hovertemplate": f"<b>{escape(name)}</b>, %{{customdata[0]}}<br>"
        f"{escape(chart.x_label)}: %{{x:.4~g}}%{{customdata[1]}}<extra></extra>",
    }
    # A series has intervals only along y, so the difference is passed as y and the line's position as x. Swapping the
    # axes makes the interval horizontal.
    return swap_axes(series_trace(series, series.x, series.y) | trace | error_bars(series, [0]))


def _verdict_annotation(y: int, verdict: str) -> Json:
    place = {"xref": "paper", "x": 1, "xanchor": "left", "xshift": 8, "yref": "y", "y": y, "yanchor": "middle"}
    return {"text": escape(verdict), "showarrow": False, "align": "left", **place}
