"""Charts as Plotly draws them: plain data of traces and layout.

Colours are those of the light page; `meta.style` says which colour of the page a trace has, so that the page's script
can exchange them. All text from outside is escaped: Plotly takes its texts for a kind of HTML.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ailora.formatting import format_number
from ailora.plots.chart_spec import COLOURS, Axis, Chart, Heatmap, Plot, Series
from ailora.plots.plotly_text import rounded, short, text

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down", "star", "cross")
_PATTERNS = ("", "/", "x", ".", "\\", "-", "|", "+")
#: Points above which a line is a line, without a marker at each point.
_MARKED = 40
#: Ticks that stand at the values themselves rather than at round numbers.
_TICKS = 9
#: Characters of names beside each other, from which on they stand below each other.
_WIDE = 48
#: Characters of a name beside an axis, and in a legend; hovering shows more.
_LONGEST_TICK, _LONGEST_NAME = 26, 48
_HEIGHT, _ROW, _AROUND, _LEGEND_ROW = 340, 30, 90, 22


def plotly_figure(chart: Chart) -> dict[str, Any]:
    """A chart as `data` and `layout`, JSON without NaN."""
    return _heat(chart) if isinstance(chart, Heatmap) else _plot(chart)


def count_missing(chart: Chart) -> int:
    """How many values of a chart are not finite; a gap on purpose, None, is not counted."""
    if isinstance(chart, Heatmap):
        return 0
    return sum(isinstance(y, float) and not math.isfinite(y) for one in chart.series for y in one.y)


def _plot(chart: Plot) -> dict[str, Any]:
    flat = _lies(chart)
    traces: list[dict[str, Any]] = []
    for number, series in enumerate(chart.series):
        made = _bars(chart, series, number) if chart.kind == "bars" else _line(chart, series, _shift(chart, number))
        if chart.kind == "lines":
            traces += _band(series)
        traces.append(made | {"hovertemplate": _template(chart, series, flat=flat)})
    if flat:
        traces = [_turned(trace) for trace in traces]
    legend = len(chart.series) > 1 and not all(_is_its_category(chart, one) for one in chart.series)
    # A line at 0 means something among values only.
    x = _axis(chart.x, [v for one in chart.series for v in one.x]) | {"zeroline": False}
    y = _axis(chart.y, []) | {"zeroline": chart.kind != "points" or bool(chart.x.categories)}
    height = _AROUND + _ROW * len(chart.x.categories) * _lanes(chart) if flat else _HEIGHT
    layout: dict[str, Any] = {
        "xaxis": y | {"nticks": 5, "tickangle": 0} if flat else x,
        "yaxis": _downwards(x) | {"title": {"text": ""}} if flat else y,
        "showlegend": legend,
        "height": height + _LEGEND_ROW * math.ceil(len(chart.series) / 4 if legend else 0),
        "hovermode": "closest",
    }
    return {"data": traces, "layout": layout | ({"barmode": "group"} if chart.kind == "bars" else {})}


def _lies(chart: Plot) -> bool:
    """Whether categories stand below each other, as there is no room for their names beside each other."""
    names = chart.x.categories
    return bool(names) and (sum(map(len, names)) > _WIDE or max(map(len, names)) > _WIDE // 3)


def _lanes(chart: Plot) -> float:
    """How much room a category needs: one series each, or all of them beside each other."""
    return max(1.0, len(chart.series) * 0.6) if _share_places(chart) else 1.0


def _share_places(chart: Plot) -> bool:
    """Whether several series have points at one category."""
    places = [place for one in chart.series for place in {round(x) for x in one.x}]
    return len(set(places)) < len(places)


def _is_its_category(chart: Plot, series: Series) -> bool:
    """Whether the axis names a series already."""
    return bool(chart.x.categories) and all(chart.x.categories[round(x)] == series.name for x in series.x)


def _shift(chart: Plot, number: int) -> float:
    """Points of one category stand beside each other, where their places do not say so already."""
    if chart.kind != "points" or not chart.x.categories or not _share_places(chart):
        return 0.0
    if any(x != round(x) for one in chart.series for x in one.x):
        return 0.0
    return (number - (len(chart.series) - 1) / 2) * 0.6 / len(chart.series)


def _trace(series: Series) -> dict[str, Any]:
    return {
        "name": text(short(series.name, _LONGEST_NAME)),
        "x": [rounded(x) for x in series.x],
        "y": [rounded(y) for y in series.y],
        "meta": {"style": series.style % len(COLOURS)},
        "legendgroup": text(series.name),
    }


def _line(chart: Plot, series: Series, shift: float) -> dict[str, Any]:
    colour = COLOURS[series.style % len(COLOURS)]
    lines = chart.kind == "lines"
    many = lines and len(series.x) > _MARKED
    # What lies below an open marker is seen through it.
    covers = chart.kind == "points" and not chart.x.categories and series is not chart.series[0]
    marker = _MARKERS[series.style % len(_MARKERS)] + ("-open" if series.style >= len(_MARKERS) or covers else "")
    made = _trace(series) | {
        "type": "scatter",
        "mode": "lines" if many else "lines+markers" if lines else "markers",
        "line": {"color": colour, "width": 2, "dash": _DASHES[series.style % len(_DASHES)]},
        "marker": {"color": colour, "size": 7 if lines else 9, "symbol": marker},
        "customdata": _custom(chart, series),
        "connectgaps": False,
    }
    if shift:
        made["x"] = [rounded(x + shift) for x in series.x]
    # A band has no width at a point whose neighbours have no interval.
    alone = _alone(series) if lines else range(len(series.x))
    return made | _error(series, alone)


def _bars(chart: Plot, series: Series, number: int) -> dict[str, Any]:
    colour = COLOURS[series.style % len(COLOURS)]
    # The first needs no pattern to be told from the others, in grey too.
    pattern = {"shape": _PATTERNS[number % len(_PATTERNS)], "solidity": 0.25, "fillmode": "overlay"}
    return (
        _trace(series)
        | {
            "type": "bar",
            "marker": {"color": colour, "pattern": pattern},
            "customdata": _custom(chart, series),
        }
        | _error(series, range(len(series.x)))
    )


def _error(series: Series, places: Sequence[int]) -> dict[str, Any]:
    """Interval bars at some places."""
    known = [i for i in places if _interval(series, i)]
    if not known:
        return {}
    up: list[float | None] = [0.0] * len(series.x)
    down: list[float | None] = [0.0] * len(series.x)
    for i in known:
        up[i], down[i] = rounded(series.high[i] - series.y[i]), rounded(series.y[i] - series.low[i])
    return {"error_y": {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.6}}


def _interval(series: Series, i: int) -> bool:
    """Whether a point has an interval."""
    if not series.low or not series.high:
        return False
    ends = (series.low[i], series.y[i], series.high[i])
    return all(end is not None and math.isfinite(end) for end in ends)


def _runs(series: Series) -> list[list[int]]:
    """Neighbouring points that have intervals."""
    found: list[list[int]] = [[]]
    for i in range(len(series.x)):
        if _interval(series, i):
            found[-1].append(i)
        elif found[-1]:
            found.append([])
    return [run for run in found if run]


def _alone(series: Series) -> list[int]:
    return [run[0] for run in _runs(series) if len(run) == 1]


def _band(series: Series) -> list[dict[str, Any]]:
    """The intervals of a line, as an area around it."""
    x: list[float | None] = []
    y: list[float | None] = []
    for run in (run for run in _runs(series) if len(run) > 1):
        forth, back = run, run[::-1]
        x += [*(rounded(series.x[i]) for i in (*forth, *back)), None]
        y += [*(rounded(series.high[i]) for i in forth), *(rounded(series.low[i]) for i in back), None]
    if not x:
        return []
    return [
        {
            "type": "scatter",
            "x": x[:-1],
            "y": y[:-1],
            "fill": "toself",
            "mode": "lines",
            "line": {"width": 0},
            "fillcolor": COLOURS[series.style % len(COLOURS)],
            "opacity": 0.11,
            "hoverinfo": "skip",
            "showlegend": False,
            "legendgroup": text(series.name),
            "name": text(series.name),
            "meta": {"style": series.style % len(COLOURS), "band": True},
        }
    ]


def _custom(chart: Plot, series: Series) -> list[list[str]]:
    """Of each point its category, and what stands below its value."""
    return [[_category(chart, x), _below(series, i)] for i, x in enumerate(series.x)]


def _category(chart: Plot, x: float) -> str:
    return text(chart.x.categories[round(x)]) if chart.x.categories else ""


def _below(series: Series, i: int) -> str:
    interval = ""
    if _interval(series, i):
        interval = f"<br>from {format_number(series.low[i])} to {format_number(series.high[i])}"
    note = f"<br>{text(series.notes[i])}" if series.notes and series.notes[i] else ""
    return interval + note


def _template(chart: Plot, series: Series, *, flat: bool) -> str:
    """What hovering shows."""
    x, y = ("y", "x") if flat else ("x", "y")
    place = "%{customdata[0]}" if chart.x.categories else f"{text(chart.x.label)}: %{{{x}:.4~g}}"
    name = "" if series.name in chart.x.categories else f"<b>{text(series.name)}</b><br>"
    where = place if name else f"<b>{place}</b>"
    return f"{name}{where}<br>{text(chart.y.label)}: %{{{y}:.4~g}}%{{customdata[1]}}<extra></extra>"


def _axis(axis: Axis, values: Sequence[float]) -> dict[str, Any]:
    made: dict[str, Any] = {"title": {"text": text(axis.label)}, "automargin": True}
    if axis.categories:
        names = [text(short(name, _LONGEST_TICK)) for name in axis.categories]
        edge = len(names) - 0.5
        return made | {"tickvals": list(range(len(names))), "ticktext": names, "range": [-0.5, edge]}
    if axis.log:
        # Whole numbers at all ticks: 0.05, and not a small 5.
        made |= {"type": "log", "tickformat": ".3~g"}
    distinct = sorted(set(values))
    if values and axis.log and len(distinct) <= _TICKS:
        made |= {"tickvals": distinct, "ticktext": [f"{value:.3g}" for value in distinct]}
    return made


def _downwards(axis: dict[str, Any]) -> dict[str, Any]:
    """An axis of categories whose first one stands at the top."""
    return axis | {"range": axis["range"][::-1]}


_TURNED = {"x": "y", "y": "x", "error_y": "error_x"}


def _turned(trace: dict[str, Any]) -> dict[str, Any]:
    """A trace with x and y exchanged."""
    made = {_TURNED.get(key, key): value for key, value in trace.items()}
    return made | ({"orientation": "h"} if trace["type"] == "bar" else {})


def _heat(chart: Heatmap) -> dict[str, Any]:
    said = [
        [_cell(chart, i, j) if math.isfinite(value) else "" for j, value in enumerate(row)]
        for i, row in enumerate(chart.values)
    ]
    trace = {
        "type": "heatmap",
        "z": [[rounded(value) for value in row] for row in chart.values],
        "text": said,
        "texttemplate": "%{text}",
        "colorscale": "Cividis",
        "colorbar": {"title": {"text": text(chart.unit), "side": "right"}, "thickness": 10, "outlinewidth": 0},
        "xgap": 2,
        "ygap": 2,
        "hoverongaps": False,
        "customdata": [[[text(row), text(column)] for column in chart.columns] for row in chart.rows],
        "hovertemplate": f"{text(chart.row_label)}: %{{customdata[0]}}<br>{text(chart.column_label)}: "
        f"%{{customdata[1]}}<br>{text(chart.unit)}: %{{z:.4~g}}<extra></extra>",
    }
    bare = {"showgrid": False, "zeroline": False}
    x = _axis(Axis(chart.column_label, categories=chart.columns), []) | bare
    y = _downwards(_axis(Axis(chart.row_label, categories=chart.rows), [])) | bare
    height = max(_HEIGHT - 40, _AROUND + 22 * len(chart.rows))
    return {"data": [trace], "layout": {"xaxis": x, "yaxis": y, "height": height, "showlegend": False}}


def _cell(chart: Heatmap, i: int, j: int) -> str:
    """What stands in a cell: little, where there are many."""
    if len(chart.rows) * len(chart.columns) > 150:
        return ""
    note = f"<br>{text(chart.notes[i][j])}" if chart.notes and chart.notes[i][j] else ""
    whole = all(value == round(value) for row in chart.values for value in row if math.isfinite(value))
    return (f"{chart.values[i][j]:,.0f}" if whole else format_number(chart.values[i][j])) + note
