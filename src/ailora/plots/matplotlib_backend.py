"""Charts as files for papers: vector SVG and PDF, or PNG.

Readable in grey and by the colour-blind: series differ in dash and marker as well, and colours in luminance. The same
charts make the same bytes: no date is written, and the ids inside an SVG come from a fixed salt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ailora.atomic_io import replacing_file
from ailora.errors import InputError
from ailora.plots.chart_spec import COLOURS, Chart, Heatmap, Plot, Series

DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)), (0, (3, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
#: Formats, and what says when a file was made.
_DATES: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
_STYLE: Any = {
    "svg.hashsalt": "ailora",
    "text.parse_math": False,  # names come from runs, and a dollar sign is no formula
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
}


def save_figure(charts: Sequence[Chart], file: Path, *, columns: int = 2, title: str = "") -> None:
    """Draw charts into one file, a panel each.

    Args:
        charts: what to draw.
        file: where to write; its ending decides the format: .svg, .pdf or .png.
        columns: panels side by side.
        title: what stands above all panels.

    Raises:
        InputError: another ending, or no charts.
    """
    kind = file.suffix.removeprefix(".").lower()
    if kind not in _DATES:
        raise InputError(f"{file}: figures are written as .svg, .pdf or .png")
    if not charts:
        raise InputError(f"{file}: there is no chart to draw")
    columns = min(columns, len(charts))
    rows = -(-len(charts) // columns)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.8 * columns, 3.5 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, chart in zip(panels, charts, strict=False):
            _draw_heat(panel, chart) if isinstance(chart, Heatmap) else _draw_plot(panel, chart)
            panel.set_title(chart.title, loc="left")
        for panel in panels[len(charts) :]:
            panel.set_axis_off()
        if title:
            figure.suptitle(title, fontsize=11)
        about = {
            "Title": title or "; ".join(chart.title for chart in charts),
            ("Subject" if kind == "pdf" else "Description"): " ".join(chart.caption for chart in charts),
            ("Software" if kind == "png" else "Creator"): f"ailora {version('ailora')}",
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(file) as stream:
            figure.savefig(stream, format=kind, dpi=150, metadata={**about, **_DATES[kind]})


def _draw_plot(panel: Axes, chart: Plot) -> None:
    if chart.kind == "bars":
        _draw_bars(panel, chart)
    else:
        for series in chart.series:
            _draw_series(
                panel, series, connected=chart.kind == "lines", many=chart.kind == "points" and _crowded(chart)
            )
    _set_axes(panel, chart)
    panel.grid(alpha=0.3, linewidth=0.5)
    panel.set_axisbelow(True)
    if len(chart.series) > 1 or (chart.series and chart.series[0].name):
        # Points are everywhere: beside them is the only place where the legend hides none.
        beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
        panel.legend(**(beside if chart.kind == "points" or len(chart.series) > 6 else {}))


def _set_axes(panel: Axes, chart: Plot) -> None:
    """Labels, scales and ticks of both axes."""
    panel.set_xlabel(chart.x.label)
    panel.set_ylabel(chart.y.label)
    for axis, which, values in ((chart.x, panel.xaxis, "x"), (chart.y, panel.yaxis, "y")):
        drawn = [value for series in chart.series for value in getattr(series, values) if value is not None]
        # Nothing above zero cannot be seen on a logarithmic axis.
        if axis.log and any(value > 0 for value in drawn):
            panel.set(**{f"{values}scale": "log"})
            # Powers as plain numbers: matplotlib writes them as formulas, which are off.
            which.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
            which.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            which.set_minor_formatter(NullFormatter())
        elif axis.categories:
            which.set_ticks(range(len(axis.categories)), list(axis.categories))
    if chart.x.categories:
        panel.set_xlim(-0.5, len(chart.x.categories) - 0.5)
        if sum(map(len, chart.x.categories)) > 50:
            panel.tick_params("x", rotation=20)
    elif not chart.x.log and _whole(chart):
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def _whole(chart: Plot) -> bool:
    """Whether all x are whole numbers, as layers and steps are."""
    return all(float(x).is_integer() for series in chart.series for x in series.x)


def _crowded(chart: Plot) -> bool:
    return any(len(series.x) > 40 for series in chart.series)


def _draw_series(panel: Axes, series: Series, *, connected: bool, many: bool) -> None:
    """Points, joined where they are lines; an interval as a whisker, or as a band around a line."""
    y = _gaps(series.y)
    look = _look(series.style)
    marker = {"marker": look["marker"], "markersize": 2.5 + 1.1 * (series.style % 8) if many else 4.5}
    # Hollow marks do not hide those beneath; where there are many, each series lies around the one before.
    face = look["color"] if series.style == 0 else "none"
    every = max(1, len(series.x) // 12) if connected else 1
    line = {
        "markeredgewidth": 0.7 if many else 0.9,
        "markevery": every,
        "linestyle": look["linestyle"] if connected else "none",
        "linewidth": 1.4,
    }
    panel.plot(series.x, y, label=series.name, color=look["color"], markerfacecolor=face, **line, **marker)
    if not len(series.low):
        return
    low, high = _gaps(series.low), _gaps(series.high)
    if connected:
        panel.fill_between(series.x, low, high, color=look["color"], alpha=0.15, linewidth=0)
    else:
        panel.vlines(series.x, low, high, color=look["color"], linewidth=1.1)


def _draw_bars(panel: Axes, chart: Plot) -> None:
    width = 0.8 / max(1, len(chart.series))
    for number, series in enumerate(chart.series):
        x = np.asarray(series.x, dtype=float) + (number - (len(chart.series) - 1) / 2) * width
        y, look = _gaps(series.y), _look(series.style)
        hatch = ("", "//", "\\\\", "xx", "..", "++", "--", "oo")[series.style % 8]
        panel.bar(x, y, width * 0.92, label=series.name, color=look["color"], hatch=hatch, edgecolor="white")
        if len(series.low):
            panel.vlines(x, _gaps(series.low), _gaps(series.high), color="#444444", linewidth=1.1)
    if all(not value for series in chart.series for value in series.y):
        panel.set_ylim(0, 1)


def _look(style: int) -> dict[str, Any]:
    """Colour, dash and marker of a style; where colours come again, it is with another dash and marker."""
    again, colour = divmod(style, len(COLOURS))
    return {
        "color": COLOURS[colour],
        "linestyle": DASHES[(style + 3 * again) % len(DASHES)],
        "marker": MARKERS[(style + 3 * again) % len(MARKERS)],
    }


def _gaps(values: Sequence[float]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def _draw_heat(panel: Axes, chart: Heatmap) -> None:
    values = np.array(chart.values, dtype=float).reshape(len(chart.rows), len(chart.columns))
    panel.set_facecolor("#e5e5e5")  # where there is no value
    image = panel.imshow(np.ma.masked_invalid(values), cmap="cividis", aspect="auto")
    panel.set_xticks(range(len(chart.columns)), list(chart.columns))
    panel.set_yticks(range(len(chart.rows)), list(chart.rows))
    panel.set_xlabel(chart.column_label)
    panel.set_ylabel(chart.row_label)
    panel.spines[:].set_visible(False)
    bar = panel.figure.colorbar(image, ax=panel, label=chart.unit)
    bar.outline.set_visible(False)
    if values.size <= 150:
        for (i, j), value in np.ndenumerate(values):
            dark = math.isfinite(value) and float(np.asarray(image.norm(value))) <= 0.55
            colour = "white" if dark else "black"
            panel.text(j, i, _cell(chart, i, j), ha="center", va="center", fontsize=7, color=colour)


def _cell(chart: Heatmap, i: int, j: int) -> str:
    value = chart.values[i][j]
    shown = f"{value:#.3g}".rstrip(".") if value is not None and math.isfinite(value) else ""
    note = chart.notes[i][j] if chart.notes else ""
    return "\n".join(part for part in (shown, note) if part)
