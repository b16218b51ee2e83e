"""Findings of an analysis as sentences: whether the paper's two observations hold for the analysed models.

The observations are from Figure 1 of the AILoRA paper (arXiv 2510.08034): query weights are dispersed over the layers
and value weights concentrated, and the updates of query weights are larger. Further sentences are about the singular
directions of the updates, and about intruder dimensions.
"""

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

    If query and value were analysed, sentences compare these two roles, as the paper does. Otherwise, they compare the
    first two roles. A difference counts if its 95 % interval excludes zero.

    Args:
        dispersion: Result of `measure_dispersion`.
        deltas: Table of updates.
        spectra: Table of spectra.
        directions: Table of direction profiles, which may be empty.
        settings: Roles, rank, top and epsilon of the analysis.

    Returns:
        List of sentences.
    """
    roles = [role.value for role in settings.roles]
    paper_roles = [role for role in roles if role in ("query", "value")]
    compared = paper_roles if len(paper_roles) == 2 else roles
    sentences: list[str] = []
    if len(compared) > 1:
        role, other = compared[:2]
        sentences += _describe_dispersion(dispersion, role, other)
        sentences += _describe_distances(dispersion, role, other)
        sentences += _describe_updates(deltas, role, other)
    return [*sentences, *_describe_directions(directions, settings), *_describe_intruders(spectra, settings)]


def _describe_dispersion(dispersion: Mapping[str, list[Row]], role: str, other: str) -> Iterator[str]:
    # A point set ("cloud") has the name of its role.
    layer_records = {(record["model"], record["cloud"]): record for record in dispersion["layers"]}
    for record in dispersion["differences"]:
        model = record["model"]
        # A weight of zeros has no direction, so the dispersion of its role is unknown.
        if record["roles"] != [role, other] or not math.isfinite(record["difference"]):
            continue
        a, b = layer_records[model, role], layer_records[model, other]
        comparative = _choose_comparative((record["low"], record["high"]), "more", "less")
        yield (
            f"{model}: over its {a['layers']} layers {role} is {comparative} dispersed than {other}: "
            f"{_with_interval(a, 'dispersion')} against {_with_interval(b, 'dispersion')}, difference "
            f"{_with_interval(record, 'difference')} (0: one direction, 1: nothing in common). In the unit of the "
            f"weights, two layers of {role} are {record['ratio']:.2f} [{record['ratio_low']:.2f}, "
            f"{record['ratio_high']:.2f}] times as far apart as two of {other}."
        )


def _describe_distances(dispersion: Mapping[str, list[Row]], role: str, other: str) -> Iterator[str]:
    distances = {(*record["models"], record["cloud"]): record for record in dispersion["between"]}
    pairs = []
    for (first, second, cloud), a in distances.items():
        b = distances.get((first, second, other))
        # Differences are paired by layer, so both roles need the same layers.
        if cloud != role or b is None or a["layer_indices"] != b["layer_indices"]:
            continue
        differences = np.subtract(a["by_layer"], b["by_layer"])
        comparative = _choose_comparative(mean_interval(differences), "farther", "closer")
        pairs.append(f"{first} and {second} {a['distance']:.3g} against {b['distance']:.3g} ({comparative})")
    if pairs:
        yield (
            f"Mean distance of two models' {role} weights in a layer, relative to |W|, against that of {other} "
            f"weights: {'; '.join(pairs)}."
        )


def _describe_updates(deltas: pd.DataFrame, role: str, other: str) -> Iterator[str]:
    for model in deltas["model"].unique():
        tables = [filter_rows(deltas, model=model, role=name) for name in (role, other)]
        norms = pd.concat([mean_by(table, "layer", "norm") for table in tables], axis=1, join="inner")
        # For unchanged weights, the ratio of norms or its logarithm is undefined.
        norms = norms.loc[(norms > 0).all(axis=1)]
        if norms.empty:
            continue
        a, b = norms.to_numpy().T
        comparative = _choose_comparative(mean_interval(np.log(a / b)), "larger", "smaller")
        # All numbers of the sentence are about the same layers.
        relative = [table.loc[table["layer"].isin(norms.index), "relative"].mean(skipna=False) for table in tables]
        yield (
            f"{model}: |dW| of {role} is {comparative} than that of {other}: {a.mean():.3g} against {b.mean():.3g} "
            f"on average, larger in {(a > b).sum()} of {len(norms)} layers; relative to |W|, {relative[0]:.3g} against "
            f"{relative[1]:.3g}."
        )


def _describe_directions(directions: pd.DataFrame, settings: AnalysisSettings) -> Iterator[str]:
    """Compare the energy in both ends of the spectrum with chance, for each model, update and role."""
    for model, update, role in directions[["model", "update", "role"]].drop_duplicates().itertuples(index=False):
        rows = filter_rows(directions, model=model, update=update, role=role)
        parts = []
        for band, side in product(("principal", "minor"), ("left", "right")):
            bins = filter_rows(rows, band=band, side=side)
            factor, low, high = enrichment(bins)
            # The factor is NaN if no layer has energy in the band, as for a zero update.
            if math.isfinite(factor):
                # A single layer has no interval.
                interval = f" [{low:.2g}, {high:.2g}]" if math.isfinite(low) else ""
                parts.append(f"{bins['share'].mean():.2%} {band} {side} ({factor:.2g}{interval})")
        if parts:
            yield (
                f"{model}: share of the energy of the {update} of {role} in {settings.rank} directions of W, and in "
                f"parentheses how many times chance: {', '.join(parts)}."
            )


def _describe_intruders(spectra: pd.DataFrame, settings: AnalysisSettings) -> Iterator[str]:
    counts = spectra.loc[spectra["model"] != "base"].groupby("model", sort=False)["intruders"].agg(["sum", "size"])
    if len(counts):
        rows = counts.itertuples(name=None)
        models = ", ".join(f"{model} {total:.0f} in {size} weights" for model, total, size in rows)
        yield (
            f"Intruder dimensions among the {settings.top} largest directions of each weight (cosine below "
            f"{settings.epsilon:g}): {models}."
        )


def _choose_comparative(interval: tuple[float, float], above: str, below: str) -> str:
    low, high = interval
    if low > 0:
        return above
    if high < 0:
        return below
    return f"neither clearly {above} nor clearly {below}"


def _with_interval(record: Row, key: str) -> str:
    return f"{record[key]:.3f} [{record['low']:.3f}, {record['high']:.3f}]"
