"""Charts as files: vector, reproducible, readable in grey, whatever things are called."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from ailora.errors import InputError
from ailora.formatting import escape_controls
from ailora.plots.chart_spec import COLOURS, Axis, Chart, ForestPlot, ForestRow, Heatmap, Plot, Series
from ailora.plots.matplotlib_backend import _set_axes, save_figure
from ailora.plots.run_charts import save_validation_curves, validation_curves

HOSTILE = "<script>alert(1)</script> $x_1^ & \\frac{"


def plot(kind: str = "lines", name: str = "run", **axes: Axis) -> Plot:
    series = tuple(
        Series(f"{name} {i}", [0, 1, 2], [1.0 + i, math.nan, 3.0], [0.5, 1, 2], [2.0, 3, 4], style=i) for i in range(3)
    )
    return Plot("p", name, kind, axes.get("x", Axis("layer")), axes.get("y", Axis("|dW|")), series, name)  # pyright: ignore[reportArgumentType]


HEAT = Heatmap(
    "h",
    "a heat map",
    ("a", "b"),
    ("x", "y", "z"),
    ((1.0, 2.0, math.nan), (4.0, 5.0, 6.0)),
    "row",
    "column",
    "points",
    "c",
)
ALL: list[Chart] = [
    plot(),
    plot("points", x=Axis("model", categories=("one", "two", "a rather long name that turns"))),
    plot("bars", x=Axis("model", categories=("one", "two", "three"))),
    plot(y=Axis("condition", log=True), x=Axis("index", log=True)),
    HEAT,
    ForestPlot(
        "f",
        "verdicts",
        "difference",
        (
            ForestRow("a", "one", 0.02, 0.01, 0.03, 0.01, "better and equivalent", True, "", 1),
            ForestRow("b", "two", math.nan, None, None, None, "undecided", False, "", 2),
        ),
        "c",
    ),
]


@pytest.mark.parametrize("kind", ["svg", "pdf", "png"])
def test_the_same_charts_are_the_same_bytes_without_a_date(tmp_path: Path, kind: str) -> None:
    for name in ("a", "b"):
        save_figure(ALL, tmp_path / "deep" / f"{name}.{kind}", title="all")
    first, second = ((tmp_path / "deep" / f"{name}.{kind}").read_bytes() for name in ("a", "b"))
    assert first == second
    assert not re.search(rb"20\d\d-\d\d-\d\d|CreationDate|dc:date", first)
    assert b"ailora" in first


def test_names_of_runs_are_text(tmp_path: Path) -> None:
    """Markup is escaped, and a dollar sign makes no formula."""
    save_figure([plot(name=HOSTILE), HEAT], tmp_path / "a.svg", title=HOSTILE)
    text = (tmp_path / "a.svg").read_text()
    assert "<script" not in text
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    save_figure([plot(name=HOSTILE)], tmp_path / "a.pdf")


@pytest.mark.parametrize("kind", ["lines", "points", "bars"])
def test_every_series_is_in_the_legend(tmp_path: Path, kind: str) -> None:
    """By default, matplotlib leaves out a series whose name begins with an underscore."""
    chart = plot(kind, name="_run", x=Axis("model", categories=("one", "two", "three")))
    save_figure([chart], tmp_path / "a.svg")
    drawn = re.findall("<!-- (.*?) -->", (tmp_path / "a.svg").read_text())
    assert [name for name in drawn if name.startswith("_run ")] == ["_run 0", "_run 1", "_run 2"]


@pytest.mark.parametrize("suffix", ["svg", "pdf", "png"])
@pytest.mark.parametrize("name", ["a\x01b", "not utf-8: \udcff", "\u202eb"])
def test_control_characters_are_escaped(tmp_path: Path, name: str, suffix: str) -> None:
    """An SVG with a control character is no XML, and no file can hold a lone surrogate."""
    forest = ForestPlot("f", name, name, (ForestRow(name, name, 1.0, 0.5, 2.0, 0.1, name, True, name, 1),), name)
    heat = dataclasses.replace(HEAT, title=name, rows=(name, "b"), notes=((name,) * 3,) * 2)
    named = plot("points", name=name, x=Axis(name, categories=(name, "b", "c")))
    file = tmp_path / f"a.{suffix}"
    save_figure([named, forest, heat], file, title=name)
    if suffix == "svg":
        root = ElementTree.fromstring(file.read_text())
        assert root.tag.endswith("svg")
        assert escape_controls(name) in file.read_text()


def test_a_long_title_of_a_panel_is_wrapped(tmp_path: Path) -> None:
    title = "Validation matthews_correlation over learning rate, cola"
    chart = dataclasses.replace(plot(), title=title)
    save_figure([chart, chart], tmp_path / "a.svg")
    drawn = re.findall("<!-- (.*?) -->", (tmp_path / "a.svg").read_text())
    assert title not in drawn
    assert drawn.count(title.removesuffix(" cola")) == drawn.count("cola") == 2


def test_fifteen_methods_look_different(tmp_path: Path) -> None:
    """As the paper's Figure 4 has: more than there are colours."""
    series = tuple(Series(f"method {i}", [0, 1], [0.0, float(i)], style=i) for i in range(15))
    save_figure([Plot("p", "many", "lines", Axis("x"), Axis("y"), series, "c")], tmp_path / "a.svg")
    lines = re.findall(r'<path d="[^"]*" clip-path[^>]*style="([^"]*stroke: #[^"]*)"', (tmp_path / "a.svg").read_text())
    drawn = [line for line in lines if "stroke-width: 1.4" in line]
    assert len(drawn) == len(set(drawn)) == 15


def test_cells_of_a_heat_map_show_as_many_digits(tmp_path: Path) -> None:
    chart = Heatmap("h", "h", ("a",), ("x", "y"), ((0.67, 0.6712),), "row", "column", "accuracy", "c")
    save_figure([chart], tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert "<!-- 0.6700 -->" in text
    assert "<!-- 0.6712 -->" in text


def test_a_line_shows_an_interval_without_neighbours(tmp_path: Path) -> None:
    """Between points without intervals there is no band, and a whisker shows the interval."""
    nan, files = math.nan, []
    for name, low, high in (("some", [nan, 0.5, nan], [nan, 1.5, nan]), ("none", [nan] * 3, [nan] * 3)):
        line = Series("run", [0, 1, 2], [1.0, 1.0, 1.0], low, high)
        files.append(tmp_path / f"{name}.svg")
        save_figure([Plot("p", "p", "lines", Axis("step"), Axis("loss"), (line,), "c")], files[-1])
    paths = [file.read_text().count("LineCollection") for file in files]
    assert paths[0] > paths[1]


def test_panels_are_not_blank_and_as_many_as_asked(tmp_path: Path) -> None:
    save_figure(ALL[:4], tmp_path / "a.png", columns=2)
    image = imread(tmp_path / "a.png")[..., :3]
    height, width = image.shape[:2]
    for panel in (image[: height // 2, : width // 2], image[height // 2 :, width // 2 :]):
        assert (panel < 0.9).any(axis=-1).mean() > 0.01
    assert imread(tmp_path / "a.png").shape[1] == 2 * 4.8 * 150
    save_figure(ALL[:1], tmp_path / "b.png")
    assert imread(tmp_path / "b.png").shape[:2] == (525, 720)


def test_series_differ_without_colour() -> None:
    """In grey: no two styles share dash and marker, and the first four colours are apart in luminance."""
    series = [Series("s", [], [], style=i) for i in range(len(COLOURS))]
    assert len({(one.dash, one.marker) for one in series}) == len(COLOURS)
    grey = [np.dot([int(c[i : i + 2], 16) for i in (1, 3, 5)], [0.299, 0.587, 0.114]) for c in COLOURS[:3]]
    assert min(abs(a - b) for i, a in enumerate(grey) for b in grey[:i]) > 30


def test_powers_are_plain_numbers(tmp_path: Path) -> None:
    """Formulas are off, and matplotlib writes powers as formulas: seen as dollar signs beside the axis."""
    series = (Series("s", [1, 10, 100], [0.001, 0.1, 10.0]),)
    save_figure([Plot("p", "t", "lines", Axis("x", log=True), Axis("y", log=True), series, "c")], tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert "mathdefault" not in text
    assert "<!-- 0.01 -->" in text


@pytest.mark.parametrize("largest", [3e-5, 1e-4, 3e-3, 1e-2, 1.0])
def test_labels_of_a_logarithmic_axis_do_not_overlap(largest: float) -> None:
    rates = [3e-6, largest]
    figure = Figure(figsize=(3.2, 2.4))
    FigureCanvasAgg(figure)
    panel = figure.add_subplot()
    chart = Plot("p", "t", "lines", Axis("learning rate", log=True), Axis("y"), (Series("s", rates, [1, 2]),), "c")
    panel.plot(rates, [1, 2])
    _set_axes(panel, chart)
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in panel.get_xticklabels() if label.get_text()]
    visible = [box for box in boxes if panel.bbox.x0 - 1 <= (box.x0 + box.x1) / 2 <= panel.bbox.x1 + 1]
    assert len(visible) >= 2
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(visible))


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected the suffix \.svg, \.pdf or \.png, got"):
        save_figure([plot()], tmp_path / "a.gif")
    with pytest.raises(InputError, match="no chart to draw"):
        save_figure([], tmp_path / "a.svg")
    save_figure(
        [Plot("p", "t", "lines", Axis("x"), Axis("y", log=True), (Series("s", [0], [0.0]),), "c")], tmp_path / "a.svg"
    )


def test_curves_are_charts(tmp_path: Path) -> None:
    histories = {"lora": [{"step": 1, "loss": 0.7, "accuracy": 0.5}, {"step": 2, "loss": 0.6, "accuracy": 0.6}]}
    loss, accuracy = validation_curves(histories)
    assert (loss.series[0].x, loss.series[0].y) == ([1, 2], [0.7, 0.6])
    assert accuracy.series[0].y == [0.5, 0.6]
    assert len(list(validation_curves(histories, ["loss"]))) == 1
    save_validation_curves(histories, ["loss", "accuracy"], tmp_path / "a.png", title="t")
    assert (tmp_path / "a.png").stat().st_size > 5000
