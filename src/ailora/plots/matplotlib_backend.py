"""Figures for papers: charts drawn by matplotlib as vector SVG and PDF, or as PNG.

Figures are readable in grey and for colour-blind readers: series also differ in dash and marker, and colours differ in
luminance. Equal charts give equal files: the files hold no date, and ids in an SVG are computed with a fixed salt.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ailora.atomic_io import replacing_file
from ailora.errors import InputError
from ailora.formatting import escape_controls
from ailora.plots.chart_spec import (
    COLOURS,
    HATCHES,
    MARKERS,
    SHADE_ALPHA,
    SHADE_COLOUR,
    Chart,
    ForestPlot,
    ForestRow,
    Heatmap,
    Plot,
    Series,
)

T = TypeVar("T")

_DASHES = {
    "solid": "-",
    "dash": "--",
    "dot": ":",
    "dashdot": "-.",
    "longdash": (0, (8, 2)),
    "longdashdot": (0, (8, 2, 1, 2)),
}
_MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "x": "X",
    "triangle-down": "v",
    "star": "*",
    "cross": "P",
}
#: Longest line of a panel's title. Longer lines would reach into the next panel, or beyond the figure.
_TITLE_CHARACTERS = 54
#: Format -> metadata that suppress the date. By default, matplotlib writes a date.
_DATELESS: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
#: These two dictionaries have the type `Any`, because matplotlib's types list the name of every setting.
_SHADE: Any = {"color": SHADE_COLOUR, "alpha": SHADE_ALPHA, "linewidth": 0}
_RC_PARAMS: Any = {
    "svg.hashsalt": "ailora",
    "text.parse_math": False,  # a dollar sign in the name of a run must not begin a formula
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
    """Draw charts into a file, each in a panel. Control characters in texts are escaped.

    Args:
        charts: At least one chart.
        file: File to write. The suffix selects the format: .svg, .pdf or .png.
        columns: Largest number of panels side by side.
        title: Title above all panels.

    Raises:
        InputError: The suffix is unknown, or there are no charts.
    """
    # An SVG must not contain control characters. No format can contain lone surrogates, by which Python represents the
    # bytes of a file name that is not UTF-8.
    charts, title = _escape_texts(charts), escape_controls(title)
    suffix = file.suffix.removeprefix(".").lower()
    if suffix not in _DATELESS:
        raise InputError(f"{file}: expected the suffix .svg, .pdf or .png, got {file.suffix!r}")
    if not charts:
        raise InputError(f"{file}: there is no chart to draw")
    columns = min(columns, len(charts))
    rows = -(-len(charts) // columns)
    with mpl.rc_context(_RC_PARAMS):
        # In inches: each line of a forest plot takes 0.2, and title and axis together take 1.
        forest_heights = [1 + 0.2 * len(chart.lines) for chart in charts if isinstance(chart, ForestPlot)]
        height = max([3.5, *forest_heights])
        # Figures are created without pyplot, because pyplot keeps all figures open and may start a window system.
        figure = Figure(figsize=(4.8 * columns, height * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, chart in zip(panels, charts, strict=False):
            _draw_chart(panel, chart)
            panel.set_title(textwrap.fill(chart.title, _TITLE_CHARACTERS), loc="left")
        for panel in panels[len(charts) :]:
            panel.set_axis_off()
        if title:
            figure.suptitle(title, fontsize=11)
        # Each format has its own keys. `checkpoints.output_file` recognizes files of ailora by the last entry.
        metadata = {
            "Title": title or "; ".join(chart.title for chart in charts),
            ("Subject" if suffix == "pdf" else "Description"): " ".join(chart.caption for chart in charts),
            ("Software" if suffix == "png" else "Creator"): f"ailora {version('ailora')}",
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(file) as stream:
            figure.savefig(stream, format=suffix, dpi=150, metadata={**metadata, **_DATELESS[suffix]})


def _escape_texts(value: T) -> T:
    """Copy charts, or parts of charts, with escaped control characters in all texts."""
    copy: object = value
    if isinstance(value, str):
        copy = escape_controls(value)
    elif isinstance(value, list | tuple):
        copy = [_escape_texts(item) for item in value]
    elif is_dataclass(value) and not isinstance(value, type):
        copy = replace(value, **{field.name: _escape_texts(getattr(value, field.name)) for field in fields(value)})
    return cast("T", copy)


def _draw_chart(panel: Axes, chart: Chart) -> None:
    match chart:
        case Heatmap():
            _draw_heatmap(panel, chart)
        case ForestPlot():
            _draw_forest(panel, chart)
        case Plot():
            _draw_plot(panel, chart)


def _draw_plot(panel: Axes, chart: Plot) -> None:
    handles: list[Any]
    if chart.kind == "bars":
        handles = _draw_bars(panel, chart)
    else:
        handles = [_draw_series(panel, chart, series) for series in chart.series]
    _set_axes(panel, chart)
    if chart.shaded is not None:
        panel.axvspan(*chart.shaded, **_SHADE)
    panel.grid(alpha=0.3, linewidth=0.5)
    panel.set_axisbelow(True)
    if chart.has_legend:
        _draw_legend(panel, chart, handles)


def _draw_legend(panel: Axes, chart: Plot, handles: Sequence[Any]) -> None:
    # A legend inside the panel would hide points, which may fill the whole panel. A long legend would also hide lines.
    is_outside = chart.kind == "points" or len(chart.series) > 6
    place: Any = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if is_outside else {}
    # Matplotlib leaves out a series whose label begins with an underscore. So the legend is made with numbers as
    # labels, and the names replace them afterwards.
    legend = panel.legend(handles, [str(number) for number in range(len(handles))], **place)
    for text, series in zip(legend.get_texts(), chart.series, strict=True):
        text.set_text(series.name)


def _set_axes(panel: Axes, chart: Plot) -> None:
    """Set labels, scales and ticks of both axes."""
    panel.set_xlabel(chart.x.label)
    panel.set_ylabel(chart.y.label)
    for axis, panel_axis, name in ((chart.x, panel.xaxis, "x"), (chart.y, panel.yaxis, "y")):
        values = [value for series in chart.series for value in getattr(series, name) if value is not None]
        # A logarithmic axis needs a positive value. A weight update of zero, for example, has only values of 0.
        if axis.log and any(value > 0 for value in values):
            panel.set(**{f"{name}scale": "log"})
            # By default, matplotlib writes powers as formulas. Without `parse_math`, these would show dollar signs.
            panel_axis.set_major_locator(LogLocator(subs=_choose_tick_digits(values), numticks=5))
            panel_axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel_axis.set_minor_formatter(NullFormatter())
        elif axis.categories:
            panel_axis.set_ticks(range(len(axis.categories)), list(axis.categories))
    if chart.x.categories:
        panel.set_xlim(-0.5, len(chart.x.categories) - 0.5)
        # Longer names would overlap.
        if sum(map(len, chart.x.categories)) > 50:
            panel.tick_params("x", rotation=20)
    elif not chart.x.log and chart.has_whole_x:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))


def _choose_tick_digits(values: Sequence[float]) -> tuple[float, ...]:
    """Choose the leading digits of the ticks of a logarithmic axis, so that their labels do not overlap."""
    positive = [value for value in values if value > 0]
    decades = math.log10(max(positive) / min(positive))
    return (1.0, 2.0, 5.0) if decades <= 1.5 else (1.0, 3.0) if decades <= 2.5 else (1.0,)


def _draw_series(panel: Axes, chart: Plot, series: Series) -> Line2D:
    """Draw the points or the line of a series, with its intervals.

    Intervals of points are whiskers. Intervals of a line form a band, but an interval between points without intervals
    is a whisker.

    Returns:
        Line or points, for the legend.
    """
    is_line = chart.kind == "lines"
    # Beyond about 40 points, markers overlap.
    crowded = not is_line and any(len(series.x) > 40 for series in chart.series)
    (line,) = panel.plot(
        series.x,
        _with_gaps(series.y),
        color=series.colour,
        linestyle=_DASHES[series.dash] if is_line else "none",
        linewidth=1.4,
        marker=_MARKERS[series.marker],
        markersize=2.5 + 1.1 * (series.style % 8) if crowded else 4.5,
        # Hollow markers do not hide the markers below them. In crowded charts, each style also has a different size.
        markerfacecolor=series.colour if series.style == 0 else "none",
        markeredgewidth=0.7 if crowded else 0.9,
        # A long line has about 12 markers.
        markevery=max(1, len(series.x) // 12) if is_line else 1,
    )
    if not len(series.low):
        return line
    x, low, high = np.asarray(series.x, dtype=float), _with_gaps(series.low), _with_gaps(series.high)
    whisker_indices = np.arange(len(x))
    if is_line:
        panel.fill_between(x, low, high, color=series.colour, alpha=0.15, linewidth=0)
        whisker_indices = np.array([run[0] for run in series.interval_runs() if len(run) == 1], dtype=int)
    if len(whisker_indices):
        low, high = low[whisker_indices], high[whisker_indices]
        panel.vlines(x[whisker_indices], low, high, color=series.colour, linewidth=1.1)
    return line


def _draw_bars(panel: Axes, chart: Plot) -> list[BarContainer]:
    """Draw grouped bars, and return the bars of each series for the legend."""
    handles: list[BarContainer] = []
    # Categories are 1 apart. A group of bars takes 0.8, and each bar has a small gap beside it.
    width = 0.8 / max(1, len(chart.series))
    for number, series in enumerate(chart.series):
        offset = (number - (len(chart.series) - 1) / 2) * width
        x = np.asarray(series.x, dtype=float) + offset
        hatch = 2 * HATCHES[number % len(HATCHES)]  # a repeated symbol makes the hatch denser
        heights = _with_gaps(series.y)
        handles.append(panel.bar(x, heights, width * 0.92, color=series.colour, hatch=hatch, edgecolor="white"))
        if len(series.low):
            panel.vlines(x, _with_gaps(series.low), _with_gaps(series.high), color="#444444", linewidth=1.1)
    # Without fixed limits, matplotlib centres the axis on zero if all bars are zero.
    if all(not value for series in chart.series for value in series.y):
        panel.set_ylim(0, 1)
    return handles


def _with_gaps(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], dtype=float)


def _draw_forest(panel: Axes, chart: ForestPlot) -> None:
    """Draw each difference in a row of its own, over its shaded margin, with the verdict at the right."""
    lines = chart.lines
    verdicts = [line.verdict if isinstance(line, ForestRow) else "" for line in lines]
    for y, line in enumerate(lines):
        if not isinstance(line, ForestRow):
            continue
        if line.margin is not None:
            panel.fill_betweenx([y - 0.5, y + 0.5], -line.margin, line.margin, **_SHADE)
        colour = COLOURS[line.style % len(COLOURS)]
        if line.low is not None and line.high is not None:
            panel.hlines(y, line.low, line.high, color=colour, linewidth=1.3)
        fill = colour if line.is_decided else "white"
        marker = _MARKERS[MARKERS[line.style % len(MARKERS)]]
        panel.plot(line.value, y, marker=marker, color=colour, markerfacecolor=fill, markersize=5.5)
    panel.axvline(0, color="#444444", linewidth=0.8, zorder=1)
    panel.set_xlim(*chart.limits)
    panel.set_ylim(len(lines) - 0.5, -0.5)
    panel.set_xlabel(chart.x_label)
    panel.set_yticks(range(len(lines)), [line.label if isinstance(line, ForestRow) else line for line in lines])
    for label, line in zip(panel.get_yticklabels(), lines, strict=True):
        label.set_fontweight("normal" if isinstance(line, ForestRow) else "bold")
    panel.tick_params("y", length=0)
    panel.grid(axis="x", alpha=0.3, linewidth=0.5)
    panel.set_axisbelow(True)
    # Verdicts are ticks of a second axis, because the layout makes room for the ticks of an axis.
    right = panel.secondary_yaxis("right")
    right.set_yticks(range(len(lines)), verdicts)
    right.tick_params("y", length=0)
    right.spines[:].set_visible(False)


def _draw_heatmap(panel: Axes, chart: Heatmap) -> None:
    values = np.array(chart.values, dtype=float).reshape(len(chart.rows), len(chart.columns))
    panel.set_facecolor("#e5e5e5")  # shows through cells without a value
    image = panel.imshow(np.ma.masked_invalid(values), cmap="cividis", aspect="auto")
    panel.set_xticks(range(len(chart.columns)), list(chart.columns))
    panel.set_yticks(range(len(chart.rows)), list(chart.rows))
    panel.set_xlabel(chart.column_label)
    panel.set_ylabel(chart.row_label)
    panel.spines[:].set_visible(False)
    colorbar = panel.figure.colorbar(image, ax=panel, label=chart.unit)
    colorbar.outline.set_visible(False)
    for (i, j), value in np.ndenumerate(values):
        if text := chart.cell_text(i, j):
            # Black on the lower half of cividis would be hard to read.
            is_dark = float(np.asarray(image.norm(value))) <= 0.55
            colour = "white" if is_dark else "black"
            panel.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
