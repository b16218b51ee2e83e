"""Charts as data: what a figure shows, and the decisions that both backends share.

Tables are computed first, charts are made of them, and two backends draw charts: `matplotlib_backend` for papers (SVG,
PDF, PNG), `plotly_backend` for the browser. A test can look at a chart's numbers without looking at pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ailora.formatting import format_number

#: Okabe and Ito's colours, told apart by colour-blind readers, in an order whose grey values differ.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
#: By Plotly's names. There are fewer dashes than colours, so that where colours repeat, dashes differ.
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down", "star", "cross")
#: Fillings of bars; the first needs none to be told from the others, in grey too.
HATCHES = ("", "/", "x", ".", "\\", "-", "|", "+")
#: Cells of a heatmap beyond which no numbers are written into them.
_MAX_LABELED_CELLS = 150


@dataclass(frozen=True)
class Axis:
    """One axis of a plot.

    Attributes:
        label: quantity and unit.
        log: logarithmic.
        categories: names in the place of numbers, in their order; x of a series is then an index into them.
    """

    label: str
    log: bool = False
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        name: as the legend shows it.
        x, y: coordinates, of equal length; a y of None or NaN is a gap.
        low, high: the interval around each y; empty: none.
        notes: what else is known of each point, shown on hover; empty: nothing.
        style: which colour, dash and marker; the same thing has the same style in all charts of a page.
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
        """Whether another style has the same colour and marker."""
        return self.style >= len(COLOURS)

    def has_interval(self, i: int) -> bool:
        """Whether the i-th point has an interval."""
        ends = (self.low[i], self.y[i], self.high[i]) if len(self.low) else (None,)
        return all(end is not None and math.isfinite(end) for end in ends)


@dataclass(frozen=True)
class Plot:
    """Lines, points or bars over x.

    Attributes:
        name: short and unique on a page; files are named after it.
        title: what it shows.
        kind: `lines`, `points` (not connected) or `bars` (grouped by category).
        x, y: the axes.
        series: what is drawn.
        caption: how to read it and what is to be seen, in a sentence or two; also for those who cannot see it.
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
        """Whether there are several series that the x-axis does not name already."""
        return len(self.series) > 1 and not all(
            self.x.categories and self.x.categories[round(x)] == one.name for one in self.series for x in one.x
        )


@dataclass(frozen=True)
class Heatmap:
    """A matrix of numbers as colours.

    Attributes:
        name, title, caption: as of a plot.
        rows, columns: their names; values[i][j] belongs to rows[i] and columns[j], NaN where there is none.
        row_label, column_label: what the rows and columns are.
        unit: what the values are.
        notes: what is written into each cell beside its value; empty: nothing.
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
        """Format the value and the note of a cell; nothing where there is no value, or where there are many cells."""
        value = self.values[i][j]
        if not math.isfinite(value) or len(self.rows) * len(self.columns) > _MAX_LABELED_CELLS:
            return ""
        is_whole = all(v == round(v) for row in self.values for v in row if math.isfinite(v))
        text = f"{value:,.0f}" if is_whole else format_number(value)
        return f"{text}\n{self.notes[i][j]}" if self.notes and self.notes[i][j] else text


Chart = Plot | Heatmap
