"""All charts of an analysis, and the folder that holds them beside its tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ailora.analysis.analysis_folder import replacing_analysis, validate_output_dir
from ailora.analysis.analysis_result import Analysis, write_tables
from ailora.analysis.table_ops import Row, rows_where
from ailora.plots.analysis_charts import anchors, intruders, shares, spectra, update_norms, update_ranks
from ailora.plots.chart_spec import Axis, Chart, Plot, Series
from ailora.plots.matplotlib_backend import draw


def write_analysis(analysis: Analysis, out: Path | str, *, force: bool = False) -> None:
    """Write the folder of an analysis, its tables and its figures, atomically.

    Args:
        analysis: from `analyze`.
        out: the folder to write: `analysis.json`, `embedding.parquet`, `deltas.parquet`, `spectra.parquet`, `figures/`.
        force: replace the analysis that `out` holds.

    Raises:
        InputError: `out` holds something else, or cannot be written.
    """
    folder = Path(out).expanduser()
    validate_output_dir(folder, (), force=force)
    with replacing_analysis(folder) as partial:
        write_tables(analysis, partial)
        for chart in analysis_charts(analysis):
            draw([chart], partial / "figures" / f"{chart.name}.svg", columns=1)


def analysis_charts(analysis: Analysis) -> list[Chart]:
    """Where the weights lie, what was added to them, and what their spectra are.

    A model has one style in all charts that compare models, 0 is the base; roles likewise. Charts without data are
    left out.
    """
    return [
        *_embeddings(analysis),
        *_dispersion(analysis),
        *update_norms(analysis),
        *shares(analysis),
        *update_ranks(analysis),
        *spectra(analysis),
        *intruders(analysis),
        *anchors(analysis),
    ]


def _embeddings(analysis: Analysis) -> Iterator[Chart]:
    for facts in analysis.info["embedding"]:
        rows = rows_where(analysis.embedding, cloud=facts["cloud"])
        what = "A point is one head of one layer" if facts["heads"] else "A point is the weight of one layer"
        name, title = facts["cloud"].replace(" ", "-"), f"of the {facts['cloud']} weights"
        if "perplexity" in facts:
            trust = facts["tsne_trustworthiness"][str(facts["seed"])]
            caption = (
                f"{what}, before and after fine-tuning. Perplexity {facts['perplexity']:.3g}, seed {facts['seed']}, "
                f"trustworthiness {trust:.2f} (0.5 is chance); distances between clusters mean nothing."
            )
            axes = Axis("t-SNE 1"), Axis("t-SNE 2")
            yield Plot(f"tsne-{name}", f"t-SNE {title}", "points", *axes, _clouds(analysis, rows, "tsne"), caption)
        across, up = facts["explained"]
        caption = (
            f"{what}, before and after fine-tuning. The axes hold {across:.1%} and {up:.1%} of the variance; distances "
            "are in the weights' own units."
        )
        axes = Axis("principal axis 1"), Axis("principal axis 2")
        yield Plot(f"pca-{name}", f"PCA {title}", "points", *axes, _clouds(analysis, rows, "pca"), caption)


def _clouds(analysis: Analysis, rows: list[Row], kind: str) -> tuple[Series, ...]:
    series = []
    for style, model in enumerate(("base", *analysis.info["after"])):
        own = [row for row in rows if row["model"] == model]
        notes = [row["module"] + (f", head {row['head']}" if row["head"] >= 0 else "") for row in own]
        x, y = [row[f"{kind}_x"] for row in own], [row[f"{kind}_y"] for row in own]
        if own:
            series.append(Series(_legend_name(model), x, y, notes=notes, style=style))
    return tuple(series)


def _legend_name(model: str) -> str:
    return "base (before)" if model == "base" else model


def _dispersion(analysis: Analysis) -> Iterator[Chart]:
    records = analysis.info["dispersion"]["layers"]
    if not records:
        return
    models = [m for m in ("base", *analysis.info["after"]) if any(r["model"] == m for r in records)]
    clouds = list(dict.fromkeys(record["cloud"] for record in records))
    series = []
    for style, cloud in enumerate(clouds):
        own = [record for record in records if record["cloud"] == cloud]
        places = [models.index(r["model"]) + (style - (len(clouds) - 1) / 2) * 0.12 for r in own]
        low, high = [r["low"] for r in own], [r["high"] for r in own]
        series.append(Series(cloud, places, [r["dispersion"] for r in own], low, high, style=style))
    yield Plot(
        "dispersion",
        "Dispersion over the layers",
        "points",
        Axis("model", categories=tuple(_legend_name(model) for model in models)),
        Axis("1 - mean cosine"),
        tuple(series),
        "How little the weights of different layers have in common, in the space of all entries: 0 is one direction, 1 "
        "nothing in common. Bars are 95 % jackknife intervals over layers.",
    )
