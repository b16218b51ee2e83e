"""Charts over layers and models: updates, their subspaces and ranks, spectra, intruders, anchors."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ailora.analysis.analysis_result import Analysis
from ailora.analysis.table_ops import Row, mean_by, rows_where
from ailora.plots.chart_spec import Axis, Plot, Series

_LAYER = Axis("layer")
_BANDS = (("principal", "left"), ("principal", "right"), ("minor", "left"), ("minor", "right"))


def _roles(analysis: Analysis) -> list[str]:
    return list(analysis.info["settings"]["roles"])


def over_layers(rows: list[Row], column: str, *, name: str, style: int) -> list[Series]:
    """Draw a line over the layers, through the mean of each layer; no line where there are no numbers."""
    means = mean_by(rows, "layer", column)
    return [Series(name=name, x=list(means), y=list(means.values()), style=style)] if means else []


def update_norms(analysis: Analysis) -> Iterator[Plot]:
    """One chart per model, so that roles are compared on one axis (the paper's Figure 1c and 1d)."""
    for number, model in enumerate(analysis.info["after"], start=1):
        for column, label, word in (("norm", "|dW|, Frobenius", "norm"), ("relative", "|dW| / |W|", "relative")):
            series = []
            for style, role in enumerate(_roles(analysis)):
                rows = rows_where(analysis.deltas, model=model, role=role)
                series += over_layers(rows, column, name=role, style=style)
            caption = f"How much fine-tuning changed each weight of {model}: {label}."
            if series:
                name, title = f"update-{number}-{word}", f"Updates of {model}"
                yield Plot(name, title, "lines", _LAYER, Axis(label), tuple(series), caption)


def shares(analysis: Analysis) -> Iterator[Plot]:
    """How much of an update lies in either subspace: the mean over layers, and the range."""
    rank, models = analysis.info["settings"]["rank"], list(analysis.info["after"])
    for role in _roles(analysis):
        rows = rows_where(analysis.deltas, role=role)
        if not rows:
            continue
        series = []
        for style, (band, side) in enumerate(_BANDS):
            column = f"{side}_{band}"
            means = mean_by(rows, "model", column)
            own = [model for model in models if model in means]
            finite = [row for row in rows if math.isfinite(row[column])]
            values = [[row[column] for row in finite if row["model"] == model] for model in own]
            places = [models.index(model) + (style - 1.5) * 0.12 for model in own]
            low, high = [min(each) for each in values], [max(each) for each in values]
            series.append(Series(f"{band}, {side}", places, [means[model] for model in own], low, high, style=style))
        for style, side in enumerate(("left", "right"), start=len(_BANDS)):
            chance = [rows[0][f"{side}_chance"]] * len(models)
            series.append(Series(f"chance, {side}", list(range(len(models))), chance, style=style))
        yield Plot(
            f"share-{role}",
            f"Share of dW in {rank} directions of W, {role}",
            "points",
            Axis("model", categories=tuple(models)),
            Axis("share of |dW|²", log=True),
            tuple(series),
            f"The energy of the update inside the {rank} principal and the {rank} minor singular directions of the "
            "weight, on the left (output) and the right (input) side: mean over layers, bars from the smallest to the "
            "largest layer.",
        )


def update_ranks(analysis: Analysis) -> Iterator[Plot]:
    """In how many directions the updates go, one chart per role."""
    for role in _roles(analysis):
        series = []
        for style, model in enumerate(analysis.info["after"], start=1):
            rows = rows_where(analysis.deltas, model=model, role=role)
            series += over_layers(rows, "effective_rank", name=model, style=style)
        if series:
            name, title = f"effective-rank-{role}", f"Effective rank of dW, {role}"
            axis = Axis("effective rank", log=True)
            caption = "In how many directions an update goes: exp of the entropy of its singular values."
            yield Plot(name, title, "lines", _LAYER, axis, tuple(series), caption)


def spectra(analysis: Analysis) -> Iterator[Plot]:
    """The singular values of the base, and what they come to in each layer."""
    rank = analysis.info["settings"]["rank"]
    for role in _roles(analysis):
        rows = sorted(rows_where(analysis.spectra, model="base", role=role), key=lambda row: row["layer"])
        chosen = [rows[i] for i in sorted({round(i * (len(rows) - 1) / 5) for i in range(6)})] if rows else []
        series = tuple(
            Series(f"layer {row['layer']}", [int(i) + 1 for i in row["indices"]], list(row["values"]), style=style)
            for style, row in enumerate(chosen)
        )
        axes = Axis("index"), Axis("singular value", log=True)
        caption = f"The spectrum of the pretrained {role} weights, in up to six layers."
        if series:
            yield Plot(f"spectrum-{role}", f"Singular values of W, {role}", "lines", *axes, series, caption)
    for column, title, label, log, caption in (
        ("principal", f"Energy in {rank} principal directions", "share of |W|²", False, "The largest"),
        ("minor", f"Energy in {rank} minor directions", "share of |W|²", True, "The smallest"),
        ("condition", "Condition", "largest / smallest singular value", True, "The spread of"),
        ("stable_rank", "Stable rank", "|W|² / largest²", False, "How evenly W is spread over"),
    ):
        series = []
        for style, role in enumerate(_roles(analysis)):
            rows = rows_where(analysis.spectra, model="base", role=role)
            series += over_layers(rows, column, name=role, style=style)
        name, full = f"base-{column.replace('_', '-')}", f"{title} of W"
        text = f"{caption} singular values of the base's weights, layer by layer: {label}."
        yield Plot(name, full, "lines", _LAYER, Axis(label, log=log), tuple(series), text)


def intruders(analysis: Analysis) -> Iterator[Plot]:
    """How many intruder dimensions a weight has, on average over layers."""
    settings, models = analysis.info["settings"], list(analysis.info["after"])
    series = []
    for style, role in enumerate(_roles(analysis)):
        means = mean_by(rows_where(analysis.spectra, role=role), "model", "intruders")
        own = [model for model in models if model in means]
        if own:
            places = [models.index(model) for model in own]
            series.append(Series(role, places, [means[model] for model in own], style=style))
    if series:
        yield Plot(
            "intruders",
            "Intruder dimensions",
            "bars",
            Axis("model", categories=tuple(models)),
            Axis(f"of {settings['top']}, mean over layers"),
            tuple(series),
            f"How many of the {settings['top']} largest left singular vectors of a fine-tuned weight have no "
            f"counterpart in the base (cosine below {settings['epsilon']:g}; arXiv 2410.21228).",
        )


def anchors(analysis: Analysis) -> Iterator[Plot]:
    """How far the factors of anchored adapters have moved."""
    for number, model in enumerate(analysis.info["after"], start=1):
        series = []
        for place, role in enumerate(_roles(analysis)):
            rows = rows_where(analysis.spectra, model=model, role=role)
            for side, factor in enumerate("AB"):
                series += over_layers(rows, f"moved_{factor}", name=f"{factor}, {role}", style=2 * place + side)
        if series:
            name, title = f"anchor-{number}", f"Distance from the anchor, {model}"
            caption = f"How far the factors of {model} have moved from where they started, relative to the start."
            yield Plot(name, title, "lines", _LAYER, Axis("|dA| / |A0|, |dB| / |B0|"), tuple(series), caption)
