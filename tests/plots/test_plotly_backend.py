"""Charts as Plotly figures: valid, finite, escaped."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import pytest

from ailora.plots.chart_spec import COLOURS, Axis, Chart, ForestPlot, ForestRow, Heatmap, Plot, Series
from ailora.plots.plotly_backend import count_missing, plotly_figure
from ailora.plots.plotly_traces import escape, round_digits
from tests.report.sample_studies import HOSTILE, TEXTS

NAN = math.nan
LINES = Plot(
    "lines",
    "Lines",
    "lines",
    Axis("rate", log=True),
    Axis("score"),
    (
        Series("a", [1e-3, 1e-2, 1e-1], [0.5, 0.7, NAN], [0.4, 0.6, NAN], [0.6, 0.8, NAN], ["", "best", ""], style=1),
        Series("b", [1e-3, 1e-2, 1e-1], [0.5, 0.6, 0.4], [NAN, 0.5, NAN], [NAN, 0.7, NAN], style=9),
    ),
    "Caption.",
)
POINTS = Plot(
    "points",
    "Points",
    "points",
    Axis("method", categories=("lora", "ailora")),
    Axis("score"),
    (Series("lora", [0], [0.5], [0.4], [0.7], ["five seeds"]), Series("ailora", [1], [0.6], style=1)),
    "Caption.",
)
BARS = replace(POINTS, kind="bars", series=(Series("a", [0, 1], [1, 2]), Series("b", [0, 1], [3, 4], style=1)))
HEAT = Heatmap("heat", "Heatmap", ("r", "s"), ("c", "d"), ((1.0, NAN), (2.0, 3.0)), "row", "column", "unit", "Caption.")

FOREST = ForestPlot(
    "forest",
    "Forest",
    "difference",
    (
        ForestRow("a", "pissa", 0.02, 0.01, 0.03, 0.01, "better", True, "5 seeds", 1),
        ForestRow("a", "milora", 0.0, None, None, None, "undecided", False, "1 seed", 2),
        ForestRow("b", "pissa", NAN, None, None, 0.01, "undecided", False, "", 1),
    ),
    "Caption.",
)


@pytest.mark.parametrize("chart", [LINES, POINTS, BARS, HEAT, FOREST], ids=lambda chart: chart.name)
def test_plotly_knows_every_key_and_json_every_value(chart: Chart) -> None:
    made = plotly_figure(chart)
    json.dumps(made, allow_nan=False)
    # Refuses what no trace and no layout has.
    go.Figure(made)


def named(figure: dict[str, Any], name: str, *, band: bool = False) -> dict[str, Any]:
    return next(t for t in figure["data"] if t["name"] == name and bool(t["meta"].get("band")) is band)


def test_rows_without_a_group_have_no_heading() -> None:
    first, second, last = FOREST.rows
    forest = replace(FOREST, rows=(replace(first, group=""), second, replace(last, group="")))
    assert forest.lines == [forest.rows[0], "a", forest.rows[1], forest.rows[2]]


def test_a_line_has_its_values_gaps_and_interval() -> None:
    made = plotly_figure(LINES)
    line = named(made, "a")
    assert (line["x"], line["y"]) == ([1e-3, 1e-2, 1e-1], [0.5, 0.7, None])
    assert line["customdata"][1] == ["", "<br>from 0.6000 to 0.8000<br>best"]
    band = named(made, "a", band=True)
    assert (band["x"], band["y"]) == ([1e-3, 1e-2, 1e-2, 1e-3], [0.6, 0.8, 0.6, 0.4])
    # One point with an interval has no area: a bar shows it.
    assert not [trace for trace in made["data"] if trace["name"] == "b" and trace["meta"].get("band")]
    assert named(made, "b")["error_y"]["array"] == pytest.approx([0.0, 0.1, 0.0])
    assert made["layout"]["xaxis"]["ticktext"] == ["0.001", "0.01", "0.1"]
    assert count_missing(LINES) == 1


def test_steps_and_counts_keep_all_digits() -> None:
    """With four digits, the step 12,345 would be shown as 1.235e+4."""
    steps = plotly_figure(replace(LINES, x=Axis("step"), series=(Series("a", [12_345, 1_234_567], [0.5, 0.4]),)))
    (trace,) = steps["data"]
    assert trace["x"] == [12_345, 1_234_567]
    assert "step: %{x:,d}<br>" in str(trace["hovertemplate"])
    assert "%{x:.4~g}<br>" in str(plotly_figure(LINES)["data"][-1]["hovertemplate"])
    (counts,) = plotly_figure(replace(HEAT, values=((1_234_567.0, NAN), (2.0, 3.0))))["data"]
    assert counts["z"] == [[1_234_567, None], [2, 3]]
    assert "unit: %{z:,d}<" in str(counts["hovertemplate"])
    assert "unit: %{z:.4~g}<" in str(plotly_figure(replace(HEAT, values=((0.5, NAN), (2.0, 3.0))))["data"][0])


def test_a_forest_has_margins_intervals_and_verdicts_at_the_lines_of_its_rows() -> None:
    made = plotly_figure(FOREST)
    layout: Any = made["layout"]
    assert layout["yaxis"]["ticktext"] == ["<b>a</b>", "pissa", "milora", "<b>b</b>", "pissa"]
    assert [(shape["x0"], shape["x1"], shape["y0"]) for shape in layout["shapes"]] == [
        (-0.01, 0.01, 0.5),
        (-0.01, 0.01, 3.5),
    ]
    assert [(note["text"], note["y"]) for note in layout["annotations"]] == [
        ("better", 1),
        ("undecided", 2),
        ("undecided", 4),
    ]
    better = named(made, "a, pissa")
    assert (better["x"], better["y"]) == ([0.02], [1])
    assert (better["error_x"]["array"], better["error_x"]["arrayminus"]) == (
        pytest.approx([0.01]),
        pytest.approx([0.01]),
    )
    assert better["customdata"] == [["better", "<br>from 0.0100 to 0.0300<br>5 seeds"]]
    undecided = named(made, "a, milora")
    assert (better["marker"]["symbol"], undecided["marker"]["symbol"]) == ("square", "diamond-open")
    assert "error_x" not in undecided
    low, high = layout["xaxis"]["range"]
    assert low < -0.01
    assert high > 0.03
    assert count_missing(FOREST) == 1


def test_a_range_of_x_is_shaded_also_where_names_stand_below_each_other() -> None:
    (shape,) = plotly_figure(replace(POINTS, shaded=(0.5, 1.5)))["layout"]["shapes"]  # type: ignore[misc]
    assert (shape["x0"], shape["x1"], shape["y0"], shape["y1"], shape["yref"]) == (0.5, 1.5, 0, 1, "paper")
    long = replace(POINTS, shaded=(0.5, 1.5), x=Axis("method", categories=("lora", "a method with a long name")))
    (shape,) = plotly_figure(long)["layout"]["shapes"]  # type: ignore[misc]
    assert (shape["y0"], shape["y1"], shape["x0"], shape["x1"], shape["xref"]) == (0.5, 1.5, 0, 1, "paper")


def test_styles_differ_without_colours() -> None:
    series = tuple(Series(str(i), [0, 1], [i, i], style=i) for i in range(12))
    lines = plotly_figure(replace(LINES, series=series))["data"]
    looks = {(trace["line"]["dash"], trace["marker"]["symbol"]) for trace in lines}
    assert len(looks) == len(series)
    assert [trace["line"]["color"] for trace in lines] == [COLOURS[i % 8] for i in range(12)]
    bars = plotly_figure(replace(BARS, series=tuple(replace(one, x=[0], y=[1]) for one in series[:8])))["data"]
    assert len({trace["marker"]["pattern"]["shape"] for trace in bars}) == 8


def test_long_names_stand_below_each_other() -> None:
    long = ("a method with a name of forty characters", "another")
    made = plotly_figure(replace(POINTS, x=Axis("method", categories=long)))
    first = made["data"][0]
    assert (first["x"], first["y"], first["error_x"]["array"]) == ([0.5], [0], [pytest.approx(0.2)])
    assert made["layout"]["yaxis"]["range"] == [1.5, -0.5]
    assert made["layout"]["yaxis"]["ticktext"][0] == "a method with a name of f…"
    # What hovering shows is whole.
    assert first["customdata"][0][0] == long[0]


def test_points_of_a_category_stand_beside_each_other() -> None:
    series = (Series("sst2", [0, 1], [1, 2]), Series("cola", [0, 1], [3, 4], style=1))
    first, second = plotly_figure(replace(POINTS, series=series))["data"]
    assert all(a < b for a, b in zip(first["x"], second["x"], strict=True))
    assert [round(x) for x in (*first["x"], *second["x"])] == [0, 1, 0, 1]


def test_a_matrix_has_gaps_and_notes() -> None:
    made = plotly_figure(replace(HEAT, notes=(("win", "x"), ("", "tie"))))
    (trace,) = made["data"]
    assert trace["z"] == [[1.0, None], [2.0, 3.0]]
    assert trace["text"] == [["1<br>win", ""], ["2", "3<br>tie"]]
    halves = plotly_figure(replace(HEAT, values=((0.5, NAN), (2.0, 3.0))))["data"][0]
    assert halves["text"] == [["0.5000", ""], ["2.0000", "3.0000"]]


@pytest.mark.parametrize("said", TEXTS)
def test_markup_and_templates_are_text(said: str) -> None:
    made = escape(said)
    assert "<" not in made
    assert "%{" not in made
    plot = replace(
        POINTS,
        x=Axis(said, categories=(said, "b")),
        y=Axis(said),
        series=(Series(said, [0], [1.0], notes=[said]), Series("b", [1], [1.0])),
    )
    heat = replace(HEAT, rows=(said, "s"), unit=said, notes=((said, ""), ("", "")))
    for chart in (plot, heat, replace(LINES, series=(replace(LINES.series[0], name=said),))):
        whole = json.dumps(plotly_figure(chart))
        for mark in ("<script", "<img", "<b>bold", "%{x} {{"):
            assert mark not in whole


def test_lines_break_and_numbers_are_short() -> None:
    assert escape("a\nb" + HOSTILE) == "a<br>b&lt;script&gt;alert(1)&lt;/script&gt;"
    assert [round_digits(v) for v in (1 / 3, None, NAN, math.inf, 12345678.9)] == [
        0.333333,
        None,
        None,
        None,
        12345700.0,
    ]
