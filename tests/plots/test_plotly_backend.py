"""Charts as Plotly figures: valid, finite, escaped."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import pytest

from ailora.plots.chart_spec import COLOURS, Axis, Chart, Heatmap, Plot, Series
from ailora.plots.plotly_backend import count_missing, escape, plotly_figure, round_digits
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


@pytest.mark.parametrize("chart", [LINES, POINTS, BARS, HEAT], ids=lambda chart: chart.name)
def test_plotly_knows_every_key_and_json_every_value(chart: Chart) -> None:
    made = plotly_figure(chart)
    json.dumps(made, allow_nan=False)
    # Refuses what no trace and no layout has.
    go.Figure(made)


def named(figure: dict[str, Any], name: str, *, band: bool = False) -> dict[str, Any]:
    return next(t for t in figure["data"] if t["name"] == name and bool(t["meta"].get("band")) is band)


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
