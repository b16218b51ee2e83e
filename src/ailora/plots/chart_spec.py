"""Charts as plain data: axes, series and styles, shared by both backends.

Tables are computed first, charts are built from them, and two backends draw charts: `matplotlib_backend` for papers
(SVG, PDF, PNG), `plotly_backend` for the browser. Tests check the numbers of a chart without looking at pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ailora.formatting import format_number

#: Okabe and Ito's palette for colour-blind readers, in an order of differing grey values.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
#: Plotly's names. Dashes are fewer than colours, so that styles with the same colour have different dashes.
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down", "star", "cross")
#: Hatches of bars; a bar without a hatch differs from the others in grey as well.
HATCHES = ("", "/", "x", ".", "\\", "-", "|", "+")
#: Cells of a heatmap above which cells have no text.
_MAX_LABELED_CELLS = 150


@dataclass(frozen=True)
class Axis:
    """Axis of a plot.

    Attributes:
        label: quantity and unit.
        log: whether the axis is logarithmic.
        categories: names in place of numbers, in order; coordinates are then indices into them.
    """

    label: str
    log: bool = False
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """Named points of a plot, drawn in the same style.

    Attributes:
        name: name in the legend.
        x, y: coordinates, of equal length; None or NaN in y is a gap.
        low, high: ends of the interval around each y; empty for no intervals.
        notes: text for each point, shown on hover; empty for no texts.
        style: index of colour, dash and marker; a method or model has the same index in all charts of a page.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    notes: Sequence[str] = ()
    style: int = 0

    @property
    def colour(self) -> str:
        return COLOURS[self.style % len(COLOURS)]

    @property
    def dash(self) -> str:
        return DASHES[self.style % len(DASHES)]

    @property
    def marker(self) -> str:
        return MARKERS[self.style % len(MARKERS)]

    @property
    def repeats_colour(self) -> bool:
        """Whether a lower style has the same colour and marker."""
        return self.style >= len(COLOURS)

    def has_interval(self, i: int) -> bool:
        """Return whether the i-th point has an interval of finite ends around a finite value."""
        ends = (self.low[i], self.y[i], self.high[i]) if len(self.low) else (None,)
        return all(end is not None and math.isfinite(end) for end in ends)


@dataclass(frozen=True)
class Plot:
    """Lines, points or bars over x.

    Attributes:
        name: short name, unique among the charts of an analysis, a study or runs; names the file of the figure.
        title: title above the chart.
        kind: `lines`, `points` (not connected) or `bars` (grouped by category).
        x, y: the axes.
        series: the series to draw.
        caption: quantity, intervals and reading of the chart in a sentence or two, also for readers who cannot see it.
    """

    name: str
    title: str
    kind: Literal["lines", "points", "bars"]
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    caption: str

    @property
    def has_legend(self) -> bool:
        """Whether there are several series, not all named by the x-axis already."""
        # Rounded: points that share a category are shifted beside each other.
        return len(self.series) > 1 and not all(
            self.x.categories and self.x.categories[round(x)] == series.name for series in self.series for x in series.x
        )


@dataclass(frozen=True)
class Heatmap:
    """A matrix of numbers, drawn as colours.

    Attributes:
        name, title, caption: See `Plot`.
        rows, columns: names of the rows and columns.
        values: values[i][j] of rows[i] and columns[j]; NaN for an empty cell.
        row_label, column_label: labels of both axes.
        unit: quantity and unit of the values.
        notes: text of each cell below its value; empty for no texts.
    """

    name: str
    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    row_label: str
    column_label: str
    unit: str
    caption: str
    notes: tuple[tuple[str, ...], ...] = ()

    def cell_text(self, i: int, j: int) -> str:
        """Format the value and the note of a cell. Returns an empty text without a value, or among many cells."""
        value = self.values[i][j]
        if not math.isfinite(value) or len(self.rows) * len(self.columns) > _MAX_LABELED_CELLS:
            return ""
        # One format for all cells: whole numbers stay whole only if all are, so that digits can be compared.
        is_whole = all(v == round(v) for row in self.values for v in row if math.isfinite(v))
        text = f"{value:,.0f}" if is_whole else format_number(value)
        return f"{text}\n{self.notes[i][j]}" if self.notes and self.notes[i][j] else text


Chart = Plot | Heatmap
