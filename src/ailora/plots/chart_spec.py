"""Charts as plain data for both backends: axes, series and styles.

Charts are built from tables of numbers, and drawn by two backends: `matplotlib_backend` for papers (SVG, PDF, PNG) and
`plotly_backend` for the browser. Tests check the numbers in a chart without looking at pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from ailora.formatting import format_number

#: Okabe and Ito's palette for colour-blind readers. It is ordered so that the first colours also differ in grey.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
#: Dashes, with Plotly's names. As there are 6 dashes and 8 colours, the first 24 styles differ in dash or colour.
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
#: Markers, with Plotly's names.
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down", "star", "cross")
#: Hatches of bars. They distinguish bars in grey.
HATCHES = ("", "/", "x", ".", "\\", "-", "|", "+")
#: Shading of ranges. The grey is visible both on the light and on the dark page.
SHADE_COLOUR, SHADE_ALPHA = "#808080", 0.22
#: Largest number of cells in a heatmap with text in the cells.
_MAX_LABELED_CELLS = 150


@dataclass(frozen=True)
class Axis:
    """Axis of a plot.

    Attributes:
        label: Quantity and unit of the coordinates.
        log: Whether the axis is logarithmic.
        categories: Names of categories, in order. Coordinates on the axis are then indices of these names. Empty for an
            axis of numbers.
    """

    label: str
    log: bool = False
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """Points of a plot, with a common name and style.

    Attributes:
        name: Name in the legend.
        x, y: Coordinates, of equal length. None or NaN in y is a gap.
        low, high: Ends of the interval around each y. Both are empty without intervals.
        notes: Text for each point, shown on hover. Empty without notes.
        style: Index of colour, dash and marker. A method or model has the same index in all charts of a page.
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
        """Whether a style with a smaller index has the same colour and marker."""
        return self.style >= len(COLOURS)

    def has_interval(self, i: int) -> bool:
        """Return whether the i-th point has a finite value and an interval with finite ends."""
        if not len(self.low):
            return False
        values: list[float | None] = [self.low[i], self.y[i], self.high[i]]
        return all(value is not None and math.isfinite(value) for value in values)

    def interval_runs(self) -> list[list[int]]:
        """Return all runs of consecutive points with intervals, each as a list of indices.

        A line has a band along each run. A run of a single point has no band, and gets a whisker instead.
        """
        runs = groupby(range(len(self.x)), key=self.has_interval)
        return [list(indices) for has_interval, indices in runs if has_interval]


@dataclass(frozen=True)
class Plot:
    """Chart of lines, points or bars over x.

    Attributes:
        name: Short name for the file of the figure, unique among the charts of an analysis, a study or runs.
        title: Title above the chart.
        kind: `lines`, `points` (not connected) or `bars` (grouped by category).
        x, y: Axes.
        series: Series to draw.
        caption: Sentences about quantity, intervals and meaning of the chart. They also serve readers who cannot see
            the chart.
        shaded: Range of x with a shaded background. None for no shading.
    """

    name: str
    title: str
    kind: Literal["lines", "points", "bars"]
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    caption: str
    shaded: tuple[float, float] | None = None

    @property
    def has_whole_x(self) -> bool:
        """Whether all x are whole numbers, like layers and steps."""
        return all(float(x).is_integer() for series in self.series for x in series.x)

    @property
    def has_legend(self) -> bool:
        """Whether the plot needs a legend: not for a single series, nor if categories are named after their series."""
        # Coordinates are rounded, because points of the same category are shifted to lie side by side.
        return len(self.series) > 1 and not all(
            self.x.categories and self.x.categories[round(x)] == series.name for series in self.series for x in series.x
        )


@dataclass(frozen=True)
class Heatmap:
    """Matrix of numbers, shown as colours.

    Attributes:
        name, title, caption: See `Plot`.
        rows, columns: Names of the rows and of the columns.
        values: Value [i][j] for rows[i] and columns[j]. NaN for an empty cell.
        row_label, column_label: Labels of both axes.
        unit: Quantity and unit of the values.
        notes: Text below the value of each cell. Empty without notes.
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

    @property
    def has_whole_values(self) -> bool:
        """Whether all finite values are whole numbers, like counts."""
        return all(float(value).is_integer() for row in self.values for value in row if math.isfinite(value))

    def cell_text(self, i: int, j: int) -> str:
        """Format the value and the note of a cell.

        Returns:
            Text of the cell. Empty if the cell has no value, or if the heatmap has too many cells for text.
        """
        value = self.values[i][j]
        if not math.isfinite(value) or len(self.rows) * len(self.columns) > _MAX_LABELED_CELLS:
            return ""
        # All cells have the same format, so that readers can compare digits: whole numbers only if all are whole.
        text = f"{value:,.0f}" if self.has_whole_values else format_number(value)
        return f"{text}\n{self.notes[i][j]}" if self.notes and self.notes[i][j] else text


@dataclass(frozen=True)
class ForestRow:
    """Row of a forest plot: a difference with its interval.

    Attributes:
        group: Heading above adjacent rows with the same group. Empty for no heading.
        label: Name at the left.
        value: Difference.
        low, high: Ends of the interval of the difference. Both None without an interval.
        margin: Half the width of the shaded range around 0. None for no shading.
        verdict: Verdict, written at the right.
        is_decided: Whether the verdict is not `undecided`. The marker is then filled.
        note: Text shown on hover.
        style: Index of colour and marker.
    """

    group: str
    label: str
    value: float
    low: float | None
    high: float | None
    margin: float | None
    verdict: str
    is_decided: bool
    note: str
    style: int


@dataclass(frozen=True)
class ForestPlot:
    """Chart of differences in rows, with a line at 0.

    Attributes:
        name, title, caption: See `Plot`.
        x_label: Quantity and unit of the differences.
        rows: Rows, from top to bottom.
    """

    name: str
    title: str
    x_label: str
    rows: tuple[ForestRow, ...]
    caption: str

    @property
    def lines(self) -> list[str | ForestRow]:
        """Lines of the chart from top to bottom: headings of groups, and rows."""
        lines: list[str | ForestRow] = []
        group = ""
        for row in self.rows:
            if row.group != group:
                group = row.group
                lines += [group] if group else []
            lines.append(row)
        return lines

    @property
    def limits(self) -> tuple[float, float]:
        """Ends of the x-axis. They enclose 0, all intervals and all margins, with a little space."""
        ends = [0.0]
        for row in self.rows:
            margin = row.margin or 0.0
            ends += [end for end in (row.value, row.low, row.high, -margin, margin) if end is not None]
        finite = [end for end in ends if math.isfinite(end)]
        low, high = min(finite), max(finite)
        # If all ends are 0, the axis is from -1 to 1.
        space = 0.06 * (high - low) or 1.0
        return low - space, high + space


Chart = Plot | Heatmap | ForestPlot
