"""Sentences about tables whose answer is known."""

from __future__ import annotations

import pandas as pd
import pytest

from ailora.analysis.findings import summarize_findings
from ailora.roles import Role
from tests.analysis.conftest import make_settings

SETTINGS = make_settings(roles=(Role.QUERY, Role.VALUE))
NO_DISPERSION: dict[str, list[dict[str, object]]] = {"layers": [], "differences": [], "between": []}
NO_SPECTRA = pd.DataFrame(columns=["model", "intruders"])
NO_DIRECTIONS = pd.DataFrame(columns=["model", "update", "role"])


def deltas(query: list[float], value: list[float]) -> pd.DataFrame:
    """Updates with these norms, of weights with the norm 10."""
    rows = [
        {"model": "m", "layer": layer, "role": role, "norm": norm, "relative": norm / 10}
        for role, norms in (("query", query), ("value", value))
        for layer, norm in enumerate(norms)
    ]
    return pd.DataFrame(rows)


def findings(table: pd.DataFrame, between: list[dict[str, object]] | None = None) -> list[str]:
    dispersion = NO_DISPERSION | {"between": between or []}
    return summarize_findings(dispersion, table, NO_SPECTRA, directions=NO_DIRECTIONS, settings=SETTINGS)


def test_frozen_layers_count_in_no_number_of_the_sentence() -> None:
    (sentence,) = findings(deltas([0.0, 2.0, 2.2, 2.4], [0.0, 1.0, 1.1, 1.2]))
    assert "2.2 against 1.1 on average, larger in 3 of 3 layers; relative to |W|, 0.22 against 0.11." in sentence


def test_a_single_layer_has_no_interval() -> None:
    bins = [
        {"model": "m", "update": "dW", "role": "query", "band": band, "side": side, "share": 0.5, "chance": 0.25}
        for band in ("principal", "minor")
        for side in ("left", "right")
    ]
    table = pd.DataFrame(columns=["model", "layer", "role", "norm", "relative"])
    directions = pd.DataFrame(bins)
    (sentence,) = summarize_findings(NO_DISPERSION, table, NO_SPECTRA, directions=directions, settings=SETTINGS)
    assert sentence.endswith("times chance: " + ", ".join(
        f"50.00% {band} {side} (2)" for band in ("principal", "minor") for side in ("left", "right")
    ) + ".")  # fmt: skip


@pytest.mark.parametrize(("layers", "count"), [([0, 1, 2], 1), ([3, 4, 5], 0)])
def test_distances_are_paired_only_within_a_layer(layers: list[int], count: int) -> None:
    """Two models may have updated the query in some layers, and the value in as many others."""
    between: list[dict[str, object]] = [
        {"models": ["a", "b"], "cloud": role, "layer_indices": indices, "by_layer": distances, "distance": 0.2}
        for role, indices, distances in (("query", [0, 1, 2], [0.1, 0.2, 0.3]), ("value", layers, [0.2, 0.3, 0.4]))
    ]
    table = pd.DataFrame(columns=["model", "layer", "role", "norm", "relative"])
    assert len(findings(table, between)) == count
