"""Sentences on an analysis: whether the paper's two observations hold for the models that were analysed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import product

import numpy as np
import pandas as pd

from ailora.analysis.analysis_settings import AnalysisSettings
from ailora.analysis.direction_profile import enrichment
from ailora.analysis.table_ops import Row, filter_rows, mean_by, mean_interval


def summarize_findings(
    dispersion: Mapping[str, list[Row]],
    deltas: pd.DataFrame,
    spectra: pd.DataFrame,
    *,
    directions: pd.DataFrame,
    settings: AnalysisSettings,
) -> list[str]:
    """Write a sentence for each observation.

    Two roles are compared, query and value as in the paper where both were asked for, else the first two. A difference
    counts where its 95 % interval leaves out zero.
    """
    roles = [role.value for role in settings.roles]
    compared = [role for role in roles if role in ("query", "value")] if {"query", "value"} <= set(roles) else roles
    sentences: list[str] = []
    if len(compared) > 1:
        this, that = compared[:2]
        sentences += _dispersed(dispersion, this, that)
        sentences += _apart(dispersion, this, that)
        sentences += _updated(deltas, this, that)
    return [*sentences, *_directions(directions, settings), *_intruders(spectra, settings)]


def _dispersed(dispersion: Mapping[str, list[Row]], this: str, that: str) -> Iterator[str]:
    by_role = {(record["model"], record["cloud"]): record for record in dispersion["layers"]}
    for record in dispersion["differences"]:
        model = record["model"]
        if record["roles"] != [this, that]:
            continue
        a, b = by_role[model, this], by_role[model, that]
        word = _compare((record["low"], record["high"]), "more", "less")
        yield (
            f"{model}: over its {a['layers']} layers {this} is {word} dispersed than {that}: "
            f"{_with_interval(a, 'dispersion')} against {_with_interval(b, 'dispersion')}, difference "
            f"{_with_interval(record, 'difference')} (0: one direction, 1: nothing in common). In their own units, two "
            f"layers lie {record['ratio']:.2f} [{record['ratio_low']:.2f}, {record['ratio_high']:.2f}] times as far "
            "apart."
        )


def _apart(dispersion: Mapping[str, list[Row]], this: str, that: str) -> Iterator[str]:
    distances = {(*record["models"], record["cloud"]): record for record in dispersion["between"]}
    pairs = []
    for (first, second, role), a in distances.items():
        b = distances.get((first, second, that))
        if role != this or b is None or len(a["by_layer"]) != len(b["by_layer"]):
            continue
        word = _compare(mean_interval(np.subtract(a["by_layer"], b["by_layer"])), "farther", "less far")
        pairs.append(f"{first} and {second} {a['distance']:.3g} against {b['distance']:.3g} ({word})")
    if pairs:
        yield f"How far {this} weights of a layer lie apart, in |W|, against {that} weights: {'; '.join(pairs)}."


def _updated(deltas: pd.DataFrame, this: str, that: str) -> Iterator[str]:
    for model in deltas["model"].unique():
        rows = [filter_rows(deltas, model=model, role=role) for role in (this, that)]
        norms = pd.concat([mean_by(table, "layer", "norm") for table in rows], axis=1, join="inner").to_numpy()
        norms = norms[(norms > 0).all(axis=1)]
        if not len(norms):
            continue
        a, b = norms.T
        word = _compare(mean_interval(np.log(a / b)), "larger", "smaller")
        relative = [table["relative"].mean(skipna=False) for table in rows]
        yield (
            f"{model}: |dW| of {this} is {word} than that of {that}: {a.mean():.3g} against {b.mean():.3g} on average, "
            f"larger in {(a > b).sum()} of {len(norms)} layers; relative to |W|, {relative[0]:.3g} against "
            f"{relative[1]:.3g}."
        )


def _directions(directions: pd.DataFrame, settings: AnalysisSettings) -> Iterator[str]:
    """Compare both ends of the spectrum with chance, for each model, update and role."""
    for model, update, role in directions[["model", "update", "role"]].drop_duplicates().itertuples(index=False):
        rows = filter_rows(directions, model=model, update=update, role=role)
        parts = []
        for band, side in product(("principal", "minor"), ("left", "right")):
            bins = filter_rows(rows, band=band, side=side)
            factor, low, high = enrichment(bins)
            if math.isfinite(factor):
                parts.append(f"{bins['share'].mean():.2%} {band} {side} ({factor:.2g} [{low:.2g}, {high:.2g}])")
        if parts:
            yield (
                f"{model}: share of the energy of the {update} of {role} in {settings.rank} directions of W, and times "
                f"chance: {', '.join(parts)}."
            )


def _intruders(spectra: pd.DataFrame, settings: AnalysisSettings) -> Iterator[str]:
    counts = spectra.loc[spectra["model"] != "base"].groupby("model", sort=False)["intruders"].agg(["sum", "size"])
    if len(counts):
        rows = counts.itertuples(name=None)
        models = ", ".join(f"{model} {total:.0f} in {size} weights" for model, total, size in rows)
        yield (
            f"Intruder dimensions among the {settings.top} largest directions of each weight (cosine below "
            f"{settings.epsilon:g}): {models}."
        )


def _compare(interval: tuple[float, float], above: str, below: str) -> str:
    low, high = interval
    if low > 0:
        return above
    if high < 0:
        return below
    return f"neither clearly {above} nor clearly {below}"


def _with_interval(record: Row, key: str) -> str:
    return f"{record[key]:.3f} [{record['low']:.3f}, {record['high']:.3f}]"
