"""What a figure shows, without saying how it is drawn.

Tables are computed first, charts are made of them, and two renderers draw charts: `drawing` for papers (SVG, PDF, PNG)
and the report page for the browser. A test can look at a chart's numbers without looking at pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Axis:
    """One axis of a plot.

    Attributes:
        label: what is measured, with its unit.
        log: logarithmic.
        categories: the values of an axis that has names instead of numbers, in their order; x of a series is
            then an index into them.
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


Chart = Plot | Heatmap

#: Okabe and Ito's colours, told apart by colour-blind readers, in an order whose grey values differ.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
