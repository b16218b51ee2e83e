"""The paper's Figure 1 on MiniLM: CoLA and SST-2, fine-tuned fully and by AILoRA of rank 8, and analysed.

    python benchmarks/figure1.py [--data ../shared/data] [--out out/figure1]

Finished runs are not trained again. Writes `benchmarks/results/figure1.json`, and the pictures of
`docs/analysis.md` to `docs/images/`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from machine import write_results
from process_memory import read_memory

from ailora.analysis import Analysis, analyze
from ailora.analysis.table_ops import filter_rows
from ailora.plots.analysis_charts import build_analysis_charts, write_analysis
from ailora.plots.chart_spec import Chart
from ailora.plots.matplotlib_backend import save_figure
from ailora.recipes import registry
from ailora.recipes.config.loader import load_config

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
RATES = {"full": 2e-4, "ailora": 3e-3}
TRAINING = {"num_train_epochs": 2, "per_device_train_batch_size": 32, "eval_steps": 0.25, "seed": 0}
SENTENCES = 3200


def tasks(data: Path) -> dict[str, dict[str, Any]]:
    """Return the data and the metric of each task."""
    common = {"text": ["sentence"], "max_length": 32, "max_train_samples": SENTENCES, "max_validation_samples": 1000}
    sst2, cola = data / "sst2", data / "cola"
    return {
        "cola": {
            "metric": "matthews_correlation",
            "data": {
                "train": str(cola / "train.tsv"),
                "validation": str(cola / "val.tsv"),
                "columns": ["source", "label", "mark", "sentence"],
                **common,
            },
        },
        "sst2": {
            "metric": "accuracy",
            "data": {"train": str(sst2 / "train.tsv"), "validation": str(sst2 / "dev.tsv"), **common},
        },
    }


def train_all(data: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Train the four runs, and return their results. Finished runs are not trained again."""
    results = {}
    for task, fixed in tasks(data).items():
        for policy, rate in RATES.items():
            config = {
                "recipe": "classification",
                "model": "builtin:minilm",
                "adapter": {"policy": policy} if policy == "full" else {"policy": policy, "rank": 8},
                "training": {**TRAINING, "learning_rate": rate},
                "output": str(out / f"{task}-{policy}"),
                **fixed,
            }
            results[f"{task}-{policy}"] = registry.run(load_config(config))
    return results


def draw(analysis: Analysis) -> None:
    """Draw the four panels of the figure, the same panels for the adapters, and charts beyond the figure."""
    charts = {chart.name: chart for chart in build_analysis_charts(analysis)}
    number = {name: i for i, name in enumerate(analysis.info["after"], start=1)}

    def panels(*names: str) -> list[Chart]:
        return [charts[name] for name in names]

    def norms(policy: str) -> list[Chart]:
        return panels(*(f"update-{number[f'{task}-{policy}']}-norm" for task in ("cola", "sst2")))

    embedding = panels("tsne-query", "tsne-value")
    save_figure(
        [*embedding, *norms("full")], IMAGES / "analysis-figure1.svg", title="MiniLM before and after fine-tuning"
    )
    save_figure([*panels("pca-query", "pca-value"), *norms("ailora")], IMAGES / "analysis-figure1-adapters.svg")
    save_figure(panels("share-query", "share-value"), IMAGES / "analysis-shares.svg")
    names = ("effective-rank-query", "effective-rank-value", "dispersion", "intruders")
    save_figure(panels(*names), IMAGES / "analysis-ranks.svg")
    save_figure(panels("spectrum-query", "spectrum-value"), IMAGES / "analysis-spectra.svg")


def mean_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """Return a row for each model and role, with means over layers."""
    rows = []
    for model in analysis.models:
        for role in analysis.roles:
            deltas = filter_rows(analysis.deltas, model=model, role=role)
            spectra = filter_rows(analysis.spectra, model=model, role=role)
            rows.append(
                {"model": model, "role": role, "by_layer": deltas["norm"].tolist()}
                | deltas.select_dtypes("float").mean().to_dict()
                | {"intruders": float(spectra["intruders"].sum())}
                | spectra[["moved_A", "moved_B"]].mean().dropna().to_dict()
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "figure1")
    arguments = parser.parse_args()
    results = train_all(arguments.data, arguments.out)
    start = time.process_time()
    analysis = analyze("builtin:minilm", [arguments.out / name for name in results])
    write_analysis(analysis, arguments.out / "analysis", force=True)
    seconds = time.process_time() - start
    draw(analysis)
    kept = ("metrics", "best", "steps")
    write_results(
        "figure1",
        {
            "training": TRAINING | {"sentences": SENTENCES, "rates": RATES},
            "runs": {name: {key: result[key] for key in kept} for name, result in results.items()},
            "updates": mean_rows(analysis),
            "embedding": analysis.info["embedding"],
            "dispersion": analysis.info["dispersion"],
            "findings": analysis.info["findings"],
            "analysis_processor_seconds": seconds,
            "peak_memory_bytes": read_memory(),
        },
    )
    for line in analysis.info["findings"]:
        print(line)


if __name__ == "__main__":
    main()
