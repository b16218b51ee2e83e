"""A small Llama on E2E (meaning representation to text): every init at three learning rates, one seed.

    python benchmarks/e2e_runs.py [--shared ../shared] [--out out/e2e_runs]

Finished runs are not trained again. So several processes may each train some policies (`--only`) before the last one
reports all.
Writes `benchmarks/results/e2e_runs.json` and the curves to `docs/images/`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from machine import write_results

from ailora.plots.run_charts import save_validation_curves
from ailora.recipes import registry
from ailora.recipes.config.loader import load_config
from ailora.recipes.config.schema import CausalLMConfig

ROOT = Path(__file__).resolve().parents[1]
_ADAPTER_RATES = (1e-2, 2e-2, 4e-2)
RATES = {"full": (5e-4, 1.5e-3, 5e-3)} | dict.fromkeys(("lora", "pissa", "milora", "ailora"), _ADAPTER_RATES)
TRAINING = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "eval_steps": 0.2,
    "save_steps": 0.2,
    "logging_steps": 5,
    "max_length": 192,
    "seed": 0,
}
KEPT = ("metrics", "forgetting", "best", "history", "steps", "trainable_parameters", "init_seconds", "train_seconds")


def fixed(shared: Path) -> dict[str, Any]:
    """Return the settings that all runs share."""
    data = shared / "data"
    return {
        "recipe": "causal_lm",
        "model": str(shared / "lm" / "pico-llama"),
        "data": {
            "train": str(data / "e2e" / "trainset.csv"),
            "validation": str(data / "e2e" / "devset.csv"),
            "prompt": "{mr} =>",
            "completion": " {ref}",
            "max_train_samples": 4000,
            "max_validation_samples": 200,
        },
        "evaluation": {
            "generate": {"max_new_tokens": 64},
            "group_by": "mr",
            "metrics": ["bleu", "rouge_l"],
            "max_samples": 200,
            "general_text": str(data / "gsm8k" / "test.jsonl"),
            "general_template": "{question}",
            "max_general_samples": 200,
        },
    }


def one(policy: str, rate: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train a run, print its scores, and return its row of the results."""
    adapter = {"policy": policy} if policy == "full" else {"policy": policy, "rank": 8}
    config = load_config(
        {
            **fixed(arguments.shared),
            "adapter": adapter,
            "training": {**TRAINING, "learning_rate": rate},
            "output": str(arguments.out / f"{policy}-{rate:g}"),
        }
    )
    assert isinstance(config, CausalLMConfig)
    result = registry.run(config)
    row = {"policy": policy, "rate": rate} | {key: result[key] for key in (*KEPT, "peak_memory_bytes")}
    scores = {key: round(value, 3) for key, value in result["metrics"]["validation"].items()}
    rise = f"forgetting {result['forgetting']['rise']:.3f}"
    print(policy, f"{rate:g}", scores, rise, f"{row['train_seconds']:.0f} s", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "e2e_runs")
    parser.add_argument("--only", nargs="+", metavar="POLICY", help="run these, and write no report")
    arguments = parser.parse_args()
    policies = arguments.only or list(RATES)
    rows = [one(policy, rate, arguments) for policy in policies for rate in RATES[policy]]
    if arguments.only:
        return
    best = {}
    for row in rows:
        known = best.get(row["policy"])
        if known is None or row["metrics"]["validation"]["loss"] < known["metrics"]["validation"]["loss"]:
            best[row["policy"]] = row
    curves = {f"{policy} {row['rate']:g}": row["history"] for policy, row in best.items()}
    title = "Small Llama on E2E: each init at the best of three rates"
    save_validation_curves(curves, ("loss",), ROOT / "docs" / "images" / "curves-e2e.png", title=title)
    print("written to", write_results("e2e_runs", {"training": TRAINING, "runs": rows}))


if __name__ == "__main__":
    main()
