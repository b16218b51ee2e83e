"""MiniLM on SST-2 and CoLA: full fine-tuning, LoRA and AILoRA at two learning rates each, one seed.

    python benchmarks/classification_runs.py [--data ../shared/data] [--out out/classification_runs]

Finished runs are not trained again. Writes `benchmarks/results/classification_runs.json` and, for each task, a
picture of the curves to `docs/images/`.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

from ailora.plots.run_charts import save_validation_curves
from ailora.recipes import registry
from ailora.recipes.config.loader import load_config

ROOT = Path(__file__).resolve().parents[1]
RATES = {"full": (5e-5, 2e-4), "lora": (2e-3, 6e-3), "ailora": (2e-3, 6e-3)}
TRAINING = {"num_train_epochs": 1, "per_device_train_batch_size": 32, "eval_steps": 0.125, "seed": 0}


def tasks(data: Path) -> dict[str, dict[str, Any]]:
    """Return the data and the metric of each task."""
    sst2, cola = data / "sst2", data / "cola"
    return {
        "sst2": {
            "metric": "accuracy",
            "data": {
                "train": str(sst2 / "train.tsv"),
                "validation": str(sst2 / "dev.tsv"),
                "test": str(sst2 / "test.tsv"),
                "text": ["sentence"],
                "max_train_samples": 6000,
                "max_validation_samples": 1000,
            },
        },
        "cola": {
            "metric": "matthews_correlation",
            "data": {
                "train": str(cola / "train.tsv"),
                "validation": str(cola / "val.tsv"),
                "test": str(cola / "dev.tsv"),
                "columns": ["source", "label", "mark", "sentence"],
                "text": ["sentence"],
            },
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "classification_runs")
    arguments = parser.parse_args()
    rows = []
    for task, fixed in tasks(arguments.data).items():
        curves = {}
        for policy, rates in RATES.items():
            for rate in rates:
                config = {
                    "recipe": "classification",
                    "model": "builtin:minilm",
                    "adapter": {"policy": policy} if policy == "full" else {"policy": policy, "rank": 8},
                    "training": {**TRAINING, "learning_rate": rate},
                    "output": str(arguments.out / f"{task}-{policy}-{rate:g}"),
                    **fixed,
                }
                result = registry.run(load_config(config))
                curves[f"{policy} {rate:g}"] = result["history"]
                kept = ("metrics", "best", "history", "steps", "init_seconds", "train_seconds", "peak_memory_bytes")
                rows.append({"task": task, "policy": policy, "rate": rate} | {key: result[key] for key in kept})
        save_validation_curves(
            curves,
            ("loss", fixed["metric"]),
            ROOT / "docs" / "images" / f"curves-{task}.png",
            title=f"MiniLM, {task}",
        )
    report = {"machine": platform.platform(), "training": TRAINING, "runs": rows}
    (ROOT / "benchmarks/results/classification_runs.json").write_text(json.dumps(report, indent=1) + "\n")
    for row in rows:
        scores = {f"{s} {k}": round(v, 4) for s, m in row["metrics"].items() for k, v in m.items()}
        print(row["task"], row["policy"], row["rate"], scores, f"{row['train_seconds']:.0f} s")


if __name__ == "__main__":
    main()
