"""Which directions fine-tuning uses, on the models of the paper's studies: figures, numbers, and Figure 1's claims.

    ailora analyze MODEL RUN ... --directions --out out/directions-mpnet
    python benchmarks/directions.py out/directions-mpnet mpnet

Runs nothing. Reads a finished analysis of query and value, writes `results/directions-NAME.json` and the pictures of
`docs/analysis.md`. `python benchmarks/paper_studies.py` then has its claims in the paper map.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from machine import write_results
from paper_claims import ANALYSES, Finding

from ailora.analysis import Analysis, load_analysis
from ailora.analysis.direction_profile import enrichment
from ailora.analysis.table_ops import filter_rows, mean_by, mean_interval
from ailora.plots.analysis_charts import build_analysis_charts
from ailora.plots.matplotlib_backend import save_figure

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
#: Dispersion goes from 0 to 1: a difference of a hundredth means nothing.
DISPERSION_MARGIN = 0.01
#: Bands that the paper gives to the roles.
PREMISE = {"query": "principal", "value": "minor"}


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    analysis, model = load_analysis(folder), ANALYSES[name]
    draw(analysis, name, model)
    claims = [
        {"text": text, "finding": finding.value, "numbers": numbers} for text, finding, numbers in judge(analysis)
    ]
    profiles = list(profile_rows(analysis.directions))
    content: dict[str, Any] = {"model": model, "claims": claims, "profiles": profiles}
    content |= {"updates": list(update_rows(analysis)), "findings": analysis.info["findings"]}
    content |= {"dispersion": analysis.info["dispersion"], "settings": settings(analysis)}
    write_results(f"directions-{name}", content)
    for claim in claims:
        print(*claim.values(), sep=" | ")


def draw(analysis: Analysis, name: str, model: str) -> None:
    """Draw the direction profiles of every fine-tuned model, and Figure 1: t-SNE, and norms by layer."""
    charts = {chart.name: chart for chart in build_analysis_charts(analysis)}
    profiles = [chart for key, chart in charts.items() if key.startswith("directions-")]
    save_figure(profiles, IMAGES / f"directions-{name}.svg", title=f"{model}: directions of W that fine-tuning uses")
    panels = [chart for key, chart in charts.items() if key.startswith("tsne-") or key.endswith(("-norm", "-relative"))]
    save_figure(panels, IMAGES / f"figure1-{name}.svg", title=f"{model} before and after fine-tuning")


def judge(analysis: Analysis) -> Iterator[tuple[str, Finding, str]]:
    """Judge the paper's observations and its premise: claim, finding and numbers."""
    yield _judge_dispersion(analysis)
    for model in analysis.models:
        yield _judge_norms(analysis, model)
        for update in analysis.directions["update"].unique():
            for role, band in PREMISE.items():
                rows = filter_rows(analysis.directions, model=model, update=update, role=role, band=band)
                if len(rows):
                    yield _judge_band(rows, f"{_dataset(model)}: {update} of {role} lies in {band} directions")


def _judge_dispersion(analysis: Analysis) -> tuple[str, Finding, str]:
    """Compare the weights of the base over its layers: W^Q is said to be more dispersed than W^V."""
    (record,) = (
        record
        for record in analysis.info["dispersion"]["differences"]
        if record["model"] == "base" and record["roles"] == ["query", "value"]
    )
    low, high = record["low"], record["high"]
    finding = Finding.CONFIRMED if low > 0 else Finding.REFUTED if high < DISPERSION_MARGIN else Finding.UNDECIDED
    numbers = f"dispersion of W^Q minus that of W^V {record['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
    return "W^Q is dispersed over the layers, W^V concentrated", finding, numbers


def _judge_norms(analysis: Analysis, model: str) -> tuple[str, Finding, str]:
    """Compare the Frobenius norms of the updates, layer by layer."""
    norms = {role: mean_by(filter_rows(analysis.deltas, model=model, role=role), "layer", "norm") for role in PREMISE}
    ratios = np.log((norms["query"] / norms["value"]).to_numpy(dtype=float))
    low, high = mean_interval(ratios)
    numbers = (
        f"{_factor(ratios.mean(), low, high)} times as large, larger in {(ratios > 0).sum()} of {len(ratios)} layers"
    )
    return f"{_dataset(model)}: the update of W^Q is larger than that of W^V", _of_interval(low, high), numbers


def _dataset(model: str) -> str:
    """Return the dataset's name of a model that is named after its run, such as `cola_full`."""
    run = model.removesuffix("_full")
    return {"cola": "CoLA", "sst2": "SST-2", "e2e": "E2E"}.get(run, run)


def _judge_band(rows: pd.DataFrame, text: str) -> tuple[str, Finding, str]:
    """Compare the energy in a band with chance, on both sides of the weight: both must exceed it."""
    parts = []
    for side in ("left", "right"):
        factor, low, high = enrichment(filter_rows(rows, side=side))
        parts.append((_of_interval(math.log(low), math.log(high)), f"{factor:.2g} [{low:.2g}, {high:.2g}] {side}"))
    return text, Finding.all_of(part for part, _ in parts), f"times chance: {', '.join(part for _, part in parts)}"


def _of_interval(low: float, high: float) -> Finding:
    """Return the finding on a claim that a logarithm is positive."""
    return Finding.CONFIRMED if low > 0 else Finding.REFUTED if high < 0 else Finding.UNDECIDED


def _factor(mean: float, low: float, high: float) -> str:
    return f"{math.exp(mean):.2f} [{math.exp(low):.2f}, {math.exp(high):.2f}]"


def profile_rows(directions: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Average the shares of every bin over the layers, with the multiples of chance."""
    keys = ["model", "update", "role", "side", "band", "start", "stop"]
    for values, rows in directions.groupby(keys, sort=False):
        factor, low, high = (None if math.isnan(end) else round(end, 4) for end in enrichment(rows))
        share, chance = (round(float(rows[column].mean()), 6) for column in ("share", "chance"))
        place = dict(zip(keys, values, strict=True)) | {"start": int(values[5]), "stop": int(values[6])}
        yield place | {"share": share, "chance": chance, "factor": factor, "low": low, "high": high}


def update_rows(analysis: Analysis) -> Iterator[dict[str, Any]]:
    """Average the columns of the updates over layers, for each model and role."""
    for (model, role), rows in analysis.deltas.groupby(["model", "role"], sort=False):
        means = rows.select_dtypes("float").mean().round(6).to_dict()
        yield {"model": model, "role": role, "by_layer": rows["norm"].round(6).tolist()} | means


def settings(analysis: Analysis) -> dict[str, Any]:
    """Return the settings of the analysis, without paths of this machine."""
    return {
        key: value for key, value in analysis.info["settings"].items() if not isinstance(value, str) or "/" not in value
    }


if __name__ == "__main__":
    main()
