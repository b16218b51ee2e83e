"""The folder of an analysis, and the charts that are made of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
import torch

from ailora.analysis import Analysis, analyze, load_analysis
from ailora.analysis.analysis_result import validate_output_dir
from ailora.errors import InputError
from ailora.plots import analysis_charts
from ailora.plots.analysis_charts import build_analysis_charts, write_analysis
from ailora.plots.chart_spec import Plot
from ailora.plots.matplotlib_backend import save_figure
from tests.analysis.conftest import Made, adapted, analyze_into, llama, perturbed
from tests.families import FAMILIES


@pytest.fixture(scope="module")
def folder(models: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("analysis") / "out"
    analyze_into(out, models("llama"), [models("llama-full"), models("llama-adapter")], rank=3)
    return out


@pytest.fixture(scope="module")
def made(folder: Path) -> Analysis:
    return load_analysis(folder)


@pytest.mark.usefixtures("undrawn")
def test_what_is_returned_is_what_is_read_again(models: Made, tmp_path: Path) -> None:
    returned = analyze_into(tmp_path / "out", models("gpt2"), [models("gpt2-full")])
    read = load_analysis(tmp_path / "out")
    assert read.info == returned.info
    for name in ("embedding", "deltas", "spectra", "directions"):
        columns = [column for column in getattr(read, name) if column not in ("indices", "values")]
        pd.testing.assert_frame_equal(getattr(read, name)[columns], getattr(returned, name)[columns])


def test_the_folder_holds_tables_figures_and_what_was_asked(folder: Path, models: Made, made: Analysis) -> None:
    assert sorted(p.name for p in folder.iterdir()) == [
        "analysis.json",
        "deltas.parquet",
        "directions.parquet",
        "embedding.parquet",
        "figures",
        "spectra.parquet",
    ]
    info = json.loads((folder / "analysis.json").read_text())
    assert info["base"] == str(models("llama"))
    assert info["after"] == {name: str(models(name)) for name in ("llama-full", "llama-adapter")}
    assert info["kinds"] == {"llama-full": "full", "llama-adapter": "adapter"}
    assert info["settings"]["rank"] == 3
    assert info["settings"]["seeds"] == [0, 1, 2]
    assert set(info["versions"]) >= {"ailora", "torch"}
    assert {facts["cloud"] for facts in info["embedding"]} == {"query", "value"}
    names = [chart.name for chart in build_analysis_charts(made)]
    assert len(names) == len(set(names))
    assert sorted(p.stem for p in (folder / "figures").iterdir()) == sorted(names)


def test_tables_are_tidy(made: Analysis) -> None:
    """One row for each model, layer and role (and head, in the embedding)."""
    assert not made.deltas.duplicated(["model", "layer", "role"]).any()
    assert not made.spectra.duplicated(["model", "layer", "role"]).any()
    assert not made.embedding.duplicated(["model", "layer", "role", "head"]).any()
    assert made.spectra.groupby("model").size().to_dict() == {"base": 8, "llama-full": 8, "llama-adapter": 8}
    assert made.deltas.groupby("model").size().to_dict() == {"llama-full": 8, "llama-adapter": 8}
    assert made.embedding.groupby("role").size().to_dict() == {"query": 3 * 16, "value": 3 * 8}
    anchored = made.spectra[made.spectra["moved_A"].notna()]
    assert set(anchored["model"]) == {"llama-adapter"}
    bands = made.spectra[["principal", "middle", "minor"]].sum(axis=1)
    assert np.allclose(bands, 1)


def test_charts_show_the_numbers_of_the_tables(made: Analysis) -> None:
    charts = {chart.name: chart for chart in build_analysis_charts(made)}
    chart = charts["update-1-norm"]
    assert isinstance(chart, Plot)
    query = made.deltas[(made.deltas["model"] == "llama-full") & (made.deltas["role"] == "query")]
    assert chart.series[0].name == "query"
    assert list(chart.series[0].x) == [0, 1, 2, 3]
    assert list(chart.series[0].y) == query["norm"].tolist()
    cloud = charts["tsne-value"]
    assert isinstance(cloud, Plot)
    assert [(s.name, len(s.x)) for s in cloud.series] == [
        ("base (before)", 8),
        ("llama-full", 8),
        ("llama-adapter", 8),
    ]
    assert [s.style for s in cloud.series] == [0, 1, 2]
    assert cloud.series[0].notes[1] == "model.layers.0.self_attn.v_proj, head 1"
    assert {"anchor-2", "intruders", "effective-rank-query", "share-value", "dispersion"} <= charts.keys()
    assert "anchor-1" not in charts
    assert all(chart.caption and chart.title for chart in charts.values())
    chance = charts["share-value"]
    assert isinstance(chance, Plot)
    assert {s.name: s.y[0] for s in chance.series if "chance" in s.name} == {
        "chance, left": 3 / 16,
        "chance, right": 3 / 32,
    }


def test_findings_follow_the_numbers(made: Analysis) -> None:
    moved = next(line for line in made.info["findings"] if line.startswith("llama-full: |dW|"))
    query, value = (made.deltas[made.deltas["role"] == r] for r in ("query", "value"))
    query, value = (t[t["model"] == "llama-full"]["norm"] for t in (query, value))
    # The query weights have twice the rows: their random updates are 1.4 times as large.
    assert "|dW| of query is larger than that of value" in moved
    assert f"{query.mean():.3g} against {value.mean():.3g} on average, larger in 4 of 4 layers" in moved
    assert any(line.startswith("base: over its 4 layers") for line in made.info["findings"])
    assert any("llama-full and llama-adapter" in line for line in made.info["findings"])


@pytest.mark.parametrize(("name", "weights"), [("t5", 6), ("roberta", 2), ("vit", 2)])
def test_other_families(name: str, weights: int, tmp_path: Path) -> None:
    """Encoder, decoder and cross attention of T5 are told apart by their modules."""
    family = FAMILIES[name]
    family.save(tmp_path / "base")
    perturbed(family.model()).save_pretrained(tmp_path / "after")
    adapted(family.model(), tmp_path / "adapter")
    made = analyze(str(tmp_path / "base"), [tmp_path / "after", tmp_path / "adapter"], seeds=(0,))
    assert made.deltas.groupby(["model", "role"]).size().unique().tolist() == [weights]
    assert made.deltas.groupby(["model", "role"])["module"].nunique().unique().tolist() == [weights]
    assert (made.deltas["norm"] > 0).all()
    assert not made.info["notes"]


@pytest.mark.usefixtures("undrawn")
def test_weights_of_zeros_and_updates_of_nothing(tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        for layer in model.get_submodule("model.layers").children():
            layer.get_submodule("self_attn.v_proj").weight.zero_()
    model.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "same")
    made = analyze_into(tmp_path / "out", tmp_path / "base", [tmp_path / "same"], seeds=(0,))
    assert (made.deltas["norm"] == 0).all()
    assert made.deltas["left_principal"].isna().all()
    assert not [line for line in made.info["findings"] if "nan" in line.split()]
    charts = {chart.name: chart for chart in build_analysis_charts(load_analysis(tmp_path / "out"))}
    save_figure(list(charts.values()), tmp_path / "all.svg")


@pytest.mark.usefixtures("undrawn")
def test_the_base_alone(models: Made, tmp_path: Path) -> None:
    made = analyze_into(tmp_path / "out", models("llama"), roles=["value"])
    assert made.deltas.empty
    assert list(made.spectra["model"].unique()) == ["base"]
    charts = {chart.name: chart for chart in build_analysis_charts(load_analysis(tmp_path / "out"))}
    assert {"pca-value", "spectrum-value"} <= charts.keys()
    assert charts["pca-value"].caption.startswith("A point is one head of one layer. The axes hold")


def test_chance_is_that_of_the_shapes_which_a_model_updates() -> None:
    shares = dict.fromkeys((f"{side}_{band}" for side in ("left", "right") for band in ("principal", "minor")), 0.5)
    rows = [
        {"model": model, "role": "query", **shares, "left_chance": chance, "right_chance": chance / 2}
        for model, chance in (("a", 0.1), ("c", 0.2), ("c", 0.4))
    ]
    info, deltas = {"settings": {"rank": 2}}, pd.DataFrame(rows)
    analysis = SimpleNamespace(info=info, models=["a", "b", "c"], roles=["query"], deltas=deltas)
    (chart,) = analysis_charts._update_shares(cast(Analysis, analysis))
    chance = {series.name: dict(zip(series.x, series.y, strict=True)) for series in chart.series}
    assert chance["chance, left"] == pytest.approx({0: 0.1, 2: 0.3})
    assert chance["chance, right"] == pytest.approx({0: 0.05, 2: 0.15})


@pytest.mark.parametrize("out", [".", "..", "/", "a/.."])
def test_a_folder_without_a_name_is_refused(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="expected the name of a folder"):
        validate_output_dir(out, (), force=True)


def test_many_roles_stay_in_the_category_of_their_model(made: Analysis) -> None:
    """Seven roles with weights of two shapes are 14 sets of points."""
    layers = [record | {"cloud": f"{i}"} for record in made.info["dispersion"]["layers"][:2] for i in range(14)]
    crowded = replace(made, info=made.info | {"dispersion": {"layers": layers}})
    chart = next(chart for chart in build_analysis_charts(crowded) if chart.name == "dispersion")
    assert isinstance(chart, Plot)
    assert {round(x) for series in chart.series for x in series.x} == {0, 1}
    assert chart.has_legend


@pytest.mark.ci
@pytest.mark.usefixtures("undrawn")
def test_a_folder_is_replaced_only_when_told(models: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    analyze_into(out, models("llama"))
    with pytest.raises(InputError, match="already holds an analysis"):
        analyze_into(out, models("llama"))
    analyze_into(out, models("llama"), [models("llama-full")], force=True)
    assert list(load_analysis(out).info["after"]) == ["llama-full"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    for notes in (out / "notes.txt", out / "figures" / "mine.svg"):
        notes.write_text("mine")
        with pytest.raises(InputError, match=rf"{notes} is not part of the analysis"):
            analyze_into(out, models("llama"), force=True)
        assert notes.read_text() == "mine"
        notes.unlink()
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(InputError, match="is a link"):
        analyze_into(tmp_path / "link", models("llama"), force=True)
    (tmp_path / "link").unlink()
    (out / "analysis.json").unlink()
    with pytest.raises(InputError, match="is not empty and holds no analysis"):
        analyze_into(out, models("llama"), force=True)
    with pytest.raises(InputError, match="is an input inside the output folder"):
        validate_output_dir(models("llama"), [models("llama")], force=True)


def test_a_failure_leaves_what_was_there(models: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as quick:
        quick.setattr(analysis_charts, "build_analysis_charts", lambda _: [])
        analysis = analyze_into(out, models("llama"))
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(analysis_charts, "save_figure", fails)
    for target, force in ((out, True), (tmp_path / "new", False)):
        with pytest.raises(InputError, match="No space left"):
            write_analysis(analysis, target, force=force)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_a_damaged_analysis_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no analysis"):
        load_analysis(tmp_path)
    (tmp_path / "analysis.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        load_analysis(tmp_path)
    (tmp_path / "analysis.json").write_text('{"format": 2}')
    with pytest.raises(InputError, match="format must be 1, got 2"):
        load_analysis(tmp_path)
    (tmp_path / "analysis.json").write_bytes((folder / "analysis.json").read_bytes())
    with pytest.raises(InputError, match=r"embedding\.parquet cannot be read"):
        load_analysis(tmp_path)
