"""What the tables say, in sentences: whether the paper's two observations hold for the models that were analysed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from statistics import mean
from typing import Any

import pandas as pd

from ailora.analysis.dispersion import mean_interval
from ailora.analysis.table_ops import mean_by, mean_of, rows_where


def findings(
    dispersion: Mapping[str, Any], deltas: pd.DataFrame, spectra: pd.DataFrame, settings: Mapping[str, Any]
) -> list[str]:
    """One sentence for each observation.

    Two roles are compared, query and value as in the paper where both were asked for, else the first two. A difference
    counts where its 95 % interval leaves out zero.
    """
    found: list[str] = []
    roles = settings["roles"]
    compared = roles if not {"query", "value"} <= set(roles) else [r for r in roles if r in ("query", "value")]
    if len(compared) > 1:
        this, that = compared[:2]
        found += _dispersed(dispersion, this, that)
        found += _apart(dispersion, this, that)
        found += _moved(deltas, this, that)
    return found + list(_intruders(spectra, settings))


def _dispersed(dispersion: Mapping[str, Any], this: str, that: str) -> Iterator[str]:
    values = {(record["model"], record["cloud"]): record for record in dispersion["layers"]}
    for record in dispersion["differences"]:
        model, roles = record["model"], record["roles"]
        if roles != [this, that]:
            continue
        a, b = values[model, this], values[model, that]
        yield (
            f"{model}: over its {a['layers']} layers {this} is {_word(record, 'more', 'less')} dispersed than {that}: "
            f"{_with_interval(a, 'dispersion')} against {_with_interval(b, 'dispersion')}, difference "
            f"{_with_interval(record, 'difference')} (0: one direction, 1: nothing in common). In their own units, two "
            f"layers lie {record['ratio']:.2f} [{record['ratio_low']:.2f}, {record['ratio_high']:.2f}] times as far "
            "apart."
        )


def _apart(dispersion: Mapping[str, Any], this: str, that: str) -> Iterator[str]:
    found = {(*record["models"], record["cloud"]): record for record in dispersion["between"]}
    shown = []
    for (first, second, cloud), a in found.items():
        b = found.get((first, second, that))
        if cloud != this or b is None or len(a["by_layer"]) != len(b["by_layer"]):
            continue
        low, high = mean_interval([x - y for x, y in zip(a["by_layer"], b["by_layer"], strict=True)])
        word = _word({"low": low, "high": high}, "farther", "less far")
        shown.append(f"{first} and {second} {a['distance']:.3g} against {b['distance']:.3g} ({word})")
    if shown:
        yield f"How far {this} weights of a layer lie apart, in |W|, against {that} weights: {'; '.join(shown)}."


def _moved(deltas: pd.DataFrame, this: str, that: str) -> Iterator[str]:
    for model in dict.fromkeys(deltas["model"]):
        this_rows, that_rows = (rows_where(deltas, model=model, role=role) for role in (this, that))
        a, b = mean_by(this_rows, "layer", "norm"), mean_by(that_rows, "layer", "norm")
        layers = [layer for layer in a if layer in b and a[layer] > 0 and b[layer] > 0]
        if not layers:
            continue
        low, high = mean_interval([math.log(a[layer] / b[layer]) for layer in layers])
        larger = sum(a[layer] > b[layer] for layer in layers)
        relative = [mean_of(rows, "relative") for rows in (this_rows, that_rows)]
        yield (
            f"{model}: |dW| of {this} is {_word({'low': low, 'high': high}, 'larger', 'smaller')} than that of {that}: "
            f"{mean(a[layer] for layer in layers):.3g} against {mean(b[layer] for layer in layers):.3g} on average, "
            f"larger in {larger} of {len(layers)} layers; relative to |W|, {relative[0]:.3g} against {relative[1]:.3g}."
        )


def _intruders(spectra: pd.DataFrame, settings: Mapping[str, Any]) -> Iterator[str]:
    counts: dict[str, list[float]] = {}
    for row in rows_where(spectra):
        if row["model"] != "base":
            counts.setdefault(row["model"], []).append(row["intruders"])
    shown = ", ".join(f"{model} {sum(found):.0f} in {len(found)} weights" for model, found in counts.items())
    if shown:
        yield (
            f"Intruder dimensions among the {settings['top']} largest directions of each weight (cosine below "
            f"{settings['epsilon']:g}): {shown}."
        )


def _word(interval: Mapping[str, float], above: str, below: str) -> str:
    if interval["low"] > 0:
        return above
    if interval["high"] < 0:
        return below
    return f"neither clearly {above} nor clearly {below}"


def _with_interval(record: Mapping[str, Any], key: str) -> str:
    return f"{record[key]:.3f} [{record['low']:.3f}, {record['high']:.3f}]"
