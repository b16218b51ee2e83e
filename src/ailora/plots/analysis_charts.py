"""Charts of an analysis, and the folder of its tables and figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import pandas as pd

from ailora.analysis.analysis_result import Analysis, replacing_analysis, validate_output_dir, write_tables
from ailora.analysis.direction_profile import enrichment
from ailora.analysis.table_ops import filter_rows, mean_by
from ailora.plots.chart_spec import Axis, Chart, Plot, Series
from ailora.plots.matplotlib_backend import save_figure

#: Horizontal distance between points of the same category, and largest width of all points together. The distance
#: between categories is 1.
_POINT_OFFSET, _MAX_POINTS_WIDTH = 0.12, 0.9


def write_analysis(analysis: Analysis, out: Path | str, *, force: bool = False) -> None:
    """Write the tables and the figures of an analysis to a folder, atomically.

    Args:
        analysis: Result of `analyze`.
        out: Folder for `analysis.json`, a Parquet file for each table, and `figures/` with an SVG for each chart.
        force: Whether to replace an analysis in `out`.

    Raises:
        InputError: The folder holds files other than an analysis, holds an analysis and `force` is False, or cannot be
            written.
    """
    folder = validate_output_dir(out, reads=(), force=force)
    with replacing_analysis(folder) as partial:
        write_tables(analysis, partial)
        for chart in build_analysis_charts(analysis):
            save_figure([chart], partial / "figures" / f"{chart.name}.svg", columns=1)


def build_analysis_charts(analysis: Analysis) -> list[Chart]:
    """Build the charts of embeddings, updates and spectra.

    Args:
        analysis: Result of `analyze`.

    Returns:
        Charts with data. A model has the same style in all charts with a series for each model; the base has style 0. A
        role has the same style in all charts with a series for each role.
    """
    charts = [
        *_embeddings(analysis),
        *_dispersion(analysis),
        *_update_norms(analysis),
        *_update_shares(analysis),
        *_direction_profiles(analysis),
        *_update_ranks(analysis),
        *_spectra(analysis),
        *_base_spectra(analysis),
        *_intruders(analysis),
        *_anchor_distances(analysis),
    ]
    return [chart for chart in charts if chart.series]


def _embeddings(analysis: Analysis) -> Iterator[Plot]:
    for info in analysis.info["embedding"]:
        rows = filter_rows(analysis.embedding, cloud=info["cloud"])
        point_meaning = "one head of one layer" if info["heads"] else "the weight of one layer"
        point_meaning += ", before and after fine-tuning" if analysis.models else ""
        name, subject = info["cloud"].replace(" ", "-"), f"of the {info['cloud']} weights"
        if "perplexity" in info:
            trustworthiness = info["tsne_trustworthiness"][str(info["seed"])]
            caption = (
                f"A point is {point_meaning}. Perplexity {info['perplexity']:.3g}, seed {info['seed']}, "
                f"trustworthiness {trustworthiness:.2f} (0.5 is chance); distances between clusters mean nothing."
            )
            axes = Axis("t-SNE 1"), Axis("t-SNE 2")
            yield Plot(f"tsne-{name}", f"t-SNE {subject}", "points", *axes, _points(analysis, rows, "tsne"), caption)
        x_share, y_share = info["explained"]
        caption = (
            f"A point is {point_meaning}. The axes hold {x_share:.1%} and {y_share:.1%} of the variance; distances are "
            "in the unit of the weights."
        )
        axes = Axis("principal axis 1"), Axis("principal axis 2")
        yield Plot(f"pca-{name}", f"PCA {subject}", "points", *axes, _points(analysis, rows, "pca"), caption)


def _points(analysis: Analysis, rows: pd.DataFrame, method: str) -> tuple[Series, ...]:
    """Return the points of each model, from the coordinates of a method: `tsne` or `pca`."""
    series = []
    for style, model in enumerate(("base", *analysis.models)):
        points = filter_rows(rows, model=model)
        # A head of -1 stands for a whole weight.
        notes = [
            f"{module}, head {head}" if head >= 0 else module
            for module, head in zip(points["module"], points["head"], strict=True)
        ]
        x, y = points[f"{method}_x"].tolist(), points[f"{method}_y"].tolist()
        series.append(Series(_legend_name(model), x, y, notes=notes, style=style))
    return tuple(model_points for model_points in series if model_points.x)


def _dispersion(analysis: Analysis) -> Iterator[Plot]:
    columns = ["cloud", "model", "dispersion", "low", "high"]
    records = pd.DataFrame(analysis.info["dispersion"]["layers"], columns=columns)
    models = [model for model in ("base", *analysis.models) if model in set(records["model"])]
    # A cloud holds the weights of a role that have the same shape, so there may be many clouds.
    clouds = records["cloud"].unique()
    offset = min(_POINT_OFFSET, _MAX_POINTS_WIDTH / max(1, len(clouds)))
    series = []
    for style, cloud in enumerate(clouds):
        rows = filter_rows(records, cloud=cloud)
        # The points of all clouds lie side by side, centred on the position of their model.
        shift = (style - (len(clouds) - 1) / 2) * offset
        x = [models.index(model) + shift for model in rows["model"]]
        dispersion, low, high = (rows[column].tolist() for column in ("dispersion", "low", "high"))
        series.append(Series(cloud, x, dispersion, low, high, style=style))
    yield Plot(
        "dispersion",
        "Dispersion over the layers",
        "points",
        Axis("model", categories=tuple(map(_legend_name, models))),
        Axis("1 - mean cosine"),
        tuple(series),
        "How much the directions of weights differ between layers: at 0, weights have the same direction; at 1, the "
        "weights have nothing in common. Bars are 95 % jackknife intervals over layers.",
    )


def _update_norms(analysis: Analysis) -> Iterator[Plot]:
    """Chart the update norms of each model over layers, with a line for each role (the paper's Figure 1c and 1d)."""
    for number, model in enumerate(analysis.models, start=1):
        rows = filter_rows(analysis.deltas, model=model)
        for column, label in (("norm", "|dW|, Frobenius"), ("relative", "|dW| / |W|")):
            caption = f"How much fine-tuning changed each weight of {model}: {label}."
            series = _lines_by_role(analysis, rows, column)
            yield _over_layers(f"update-{number}-{column}", f"Updates of {model}", Axis(label), series, caption=caption)


def _update_shares(analysis: Analysis) -> Iterator[Plot]:
    """Chart the energy shares of updates in the principal and minor subspaces: mean and range over layers."""
    rank, models = analysis.info["settings"]["rank"], analysis.models
    for role in analysis.roles:
        rows = filter_rows(analysis.deltas, role=role)
        if rows.empty:
            continue
        series = []
        for style, (band, side) in enumerate(product(("principal", "minor"), ("left", "right"))):
            shares = rows.groupby("model")[f"{side}_{band}"].agg(["mean", "min", "max"]).reindex(models).dropna()
            # The styles 0 to 3 are centred on 1.5, so the four points lie around the position of their model.
            x = [models.index(str(model)) + (style - 1.5) * _POINT_OFFSET for model in shares.index]
            mean, low, high = (shares[column].tolist() for column in ("mean", "min", "max"))
            series.append(Series(f"{band}, {side}", x, mean, low, high, style=style))
        for style, side in enumerate(("left", "right"), start=len(series)):
            # Weights of a role may differ in shape, and then in the share of a random update.
            chance = mean_by(rows, "model", f"{side}_chance").reindex(models).dropna()
            x = [models.index(str(model)) for model in chance.index]
            series.append(Series(f"chance, {side}", x, chance.tolist(), style=style))
        yield Plot(
            f"share-{role}",
            f"Share of dW in {rank} directions of W, {role}",
            "points",
            Axis("model", categories=tuple(models)),
            Axis("share of |dW|²", log=True),
            tuple(series),
            f"Share of the update's energy in the {rank} principal and the {rank} minor singular directions of the "
            "weight, on the left (output) and the right (input) side: mean over layers, with bars from the smallest to "
            "the largest share. Chance: mean share of random updates of the same shapes.",
        )


def _direction_profiles(analysis: Analysis) -> Iterator[Plot]:
    """Chart the energy along the singular directions of W, relative to chance, for each model and side."""
    if analysis.directions.empty:
        return
    for number, model in enumerate(analysis.models, start=1):
        for side, space in (("left", "output"), ("right", "input")):
            rows = filter_rows(analysis.directions, model=model, side=side)
            series = [
                _direction_line(filter_rows(rows, role=role, update=update), f"{update}, {role}", 2 * index + offset)
                for index, role in enumerate(analysis.roles)
                for offset, update in enumerate(("dW", "gradient"))
            ]
            yield Plot(
                f"directions-{number}-{side}",
                f"Directions of W in the updates of {model}, {side}",
                "lines",
                Axis("singular directions of W, from the largest (0) to the smallest (1)"),
                Axis("share of energy / chance", log=True),
                tuple(line for line in series if line.x),
                "Energy of the update, and of the gradient before the first step, along the singular directions of W "
                f"on the {side} ({space}) side; random directions give 1. Geometric means over layers, 95 % "
                "t-intervals.",
            )


def _direction_line(rows: pd.DataFrame, name: str, style: int) -> Series:
    """Return a line through the enrichment of each bin, with x at the centre of the bin."""
    # Directions outside the spectrum have no singular value, and so no place on the x-axis.
    inside = rows.loc[rows["band"] != "outside"]
    # Weights of a role may differ in shape, and then have bins with different indices. So bins are matched by their
    # number in the band, which is the same for all shapes, except for very small weights with fewer middle bins.
    num_values = inside.groupby("module")["stop"].transform("max")
    bins = inside.assign(
        centre=(inside["start"] + inside["stop"]) / (2 * num_values),
        number=inside.groupby(["module", "band"]).cumcount(),
    )
    groups = [group for _, group in bins.groupby(["band", "number"])]
    points = sorted((float(group["centre"].mean()), *enrichment(group)) for group in groups)
    x, y, low, high = ([point[i] for point in points] for i in range(4))
    return Series(name, x, y, low, high, style=style)


def _update_ranks(analysis: Analysis) -> Iterator[Plot]:
    """Chart the effective rank of updates over layers, for each role."""
    for role in analysis.roles:
        rows = filter_rows(analysis.deltas, role=role)
        series = [
            line
            for style, model in enumerate(analysis.models, start=1)
            for line in _line(filter_rows(rows, model=model), "effective_rank", name=model, style=style)
        ]
        caption = "Effective number of directions in an update: exp of the entropy of its singular values."
        axis = Axis("effective rank", log=True)
        yield _over_layers(f"effective-rank-{role}", f"Effective rank of dW, {role}", axis, series, caption=caption)


def _spectra(analysis: Analysis) -> Iterator[Plot]:
    """Chart the singular values of the base in at most six layers, for each role."""
    for role in analysis.roles:
        rows = filter_rows(analysis.spectra, model="base", role=role).sort_values("layer", kind="stable")
        # Choose six evenly spaced layers, including the first and the last. With fewer layers, positions repeat, and
        # the set keeps each once.
        positions = sorted({round(i * (len(rows) - 1) / 5) for i in range(6)}) if len(rows) else []
        # Encoder, decoder and cross attention all number their layers from 0.
        is_ambiguous = rows["layer"].duplicated().any()
        series = tuple(
            # Indices and values are arrays in a table read from Parquet, and lists in a computed table.
            Series(
                row["module"] if is_ambiguous else f"layer {row['layer']}",
                [int(i) + 1 for i in row["indices"]],
                list(row["values"]),
                style=style,
            )
            for style, row in enumerate(rows.iloc[positions].to_dict("records"))
        )
        axes = Axis("index"), Axis("singular value", log=True)
        caption = f"Spectrum of the pretrained {role} weights in at most six layers."
        yield Plot(f"spectrum-{role}", f"Singular values of W, {role}", "lines", *axes, series, caption)


def _base_spectra(analysis: Analysis) -> Iterator[Plot]:
    """Chart energy in both bands, condition and stable rank of the base weights over layers."""
    rank, rows = analysis.info["settings"]["rank"], filter_rows(analysis.spectra, model="base")
    for column, title, label, log, caption_start in (
        ("principal", f"Energy in {rank} principal directions", "share of |W|²", False, "The largest"),
        ("minor", f"Energy in {rank} minor directions", "share of |W|²", True, "The smallest"),
        ("condition", "Condition", "largest / smallest singular value", True, "The spread of"),
        ("stable_rank", "Stable rank", "|W|² / largest²", False, "How evenly W is spread over"),
    ):
        series = _lines_by_role(analysis, rows, column)
        caption = f"{caption_start} singular values of the base's weights, layer by layer: {label}."
        name, axis = f"base-{column.replace('_', '-')}", Axis(label, log=log)
        yield _over_layers(name, f"{title} of W", axis, series, caption=caption)


def _intruders(analysis: Analysis) -> Iterator[Plot]:
    """Chart the number of intruder dimensions in a weight, averaged over layers, for each model and role."""
    settings, models = analysis.info["settings"], analysis.models
    series = []
    for style, role in enumerate(analysis.roles):
        means = mean_by(filter_rows(analysis.spectra, role=role), "model", "intruders").reindex(models).dropna()
        if len(means):
            series.append(
                Series(role, [models.index(str(model)) for model in means.index], means.tolist(), style=style)
            )
    yield Plot(
        "intruders",
        "Intruder dimensions",
        "bars",
        Axis("model", categories=tuple(models)),
        Axis(f"of {settings['top']}, mean over layers"),
        tuple(series),
        f"How many of the {settings['top']} leading left singular vectors of a fine-tuned weight have no "
        f"counterpart in the base (cosine below {settings['epsilon']:g}; arXiv 2410.21228).",
    )


def _anchor_distances(analysis: Analysis) -> Iterator[Plot]:
    """Chart the distance of the factors from the anchor, for each anchored adapter."""
    for number, model in enumerate(analysis.models, start=1):
        rows = filter_rows(analysis.spectra, model=model)
        series = [
            line
            for index, role in enumerate(analysis.roles)
            for offset, factor in enumerate("AB")
            for line in _line(
                filter_rows(rows, role=role), f"moved_{factor}", name=f"{factor}, {role}", style=2 * index + offset
            )
        ]
        caption = f"Distance of the factors of {model} from the anchor, relative to the norm of the anchor."
        axis = Axis("|dA| / |A0|, |dB| / |B0|")
        yield _over_layers(f"anchor-{number}", f"Distance from the anchor, {model}", axis, series, caption=caption)


def _lines_by_role(analysis: Analysis, rows: pd.DataFrame, column: str) -> list[Series]:
    return [
        line
        for style, role in enumerate(analysis.roles)
        for line in _line(filter_rows(rows, role=role), column, name=role, style=style)
    ]


def _line(rows: pd.DataFrame, column: str, *, name: str, style: int) -> list[Series]:
    """Return a list with a line through the mean of each layer, or an empty list without finite values."""
    # A layer may have several rows, because encoder, decoder and cross attention all number their layers from 0.
    means = mean_by(rows, "layer", column)
    return [Series(name, means.index.tolist(), means.tolist(), style=style)] if len(means) else []


def _over_layers(name: str, title: str, y: Axis, series: Iterable[Series], *, caption: str) -> Plot:
    return Plot(name, title, "lines", Axis("layer"), y, tuple(series), caption)


def _legend_name(model: str) -> str:
    return "base (before)" if model == "base" else model
