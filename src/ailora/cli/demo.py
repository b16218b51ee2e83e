"""`ailora demo`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

POLICIES = ("lora", "pissa", "milora", "ailora")


def demo(
    output: Annotated[Path, typer.Option(help="Folder for data, runs, adapters and the picture.")] = Path("out/demo"),
    train_rows: Annotated[int, typer.Option(min=32, help="Number of training sentences.")] = 3600,
) -> None:
    """Train LoRA with four inits on a small generated task, and compare the runs. Takes four minutes on two cores."""
    from ailora.cli.tables import console, print_line, result_table

    # Print before the imports below, which take seconds.
    console.print(
        f"Training a small BERT (MiniLM) with LoRA on {train_rows:,} generated sentences, with {len(POLICIES)} inits.\n"
        "This takes about four minutes on two cores. If you interrupt the demo, the same command resumes."
    )
    from ailora.checkpoints.output_file import validate_output_file
    from ailora.checkpoints.output_path import resolve_output_path
    from ailora.cli.quiet import hide_loading_messages
    from ailora.formatting import quote_argument
    from ailora.plots.run_charts import save_validation_curves
    from ailora.recipes import registry
    from ailora.recipes.config.loader import load_config
    from ailora.recipes.demo_task import write_verdicts

    hide_loading_messages()
    output = resolve_output_path(output)
    paths = write_verdicts(output / "data", train=train_rows, held_out=400)
    picture = validate_output_file(output / "curves.png", force=False)
    results = {}
    for policy in POLICIES:
        console.rule(policy)
        results[policy] = registry.run(load_config(_run_config(policy, paths, output / policy)))
    save_validation_curves(
        {policy: result["history"] for policy, result in results.items()},
        ("loss", "accuracy"),
        picture,
        title="MiniLM on generated verdicts: equal heads, batches and learning rates",
    )
    console.print(result_table(results))
    print_line(f"Curves: {picture}\nAdapters: " + ", ".join(str(output / policy / "adapter") for policy in POLICIES))
    console.print("One seed at one learning rate shows how runs look, not which init is better.")
    print_line(f"Next: ailora inspect {quote_argument(output / 'ailora')}")


def _run_config(policy: str, data: Mapping[str, Path], output: Path) -> dict[str, object]:
    return {
        "recipe": "classification",
        "model": "builtin:minilm",
        "adapter": {"policy": policy, "rank": 8},
        "data": {**{split: str(path) for split, path in data.items()}, "text": ["sentence"]},
        "training": {"learning_rate": 4e-3, "per_device_train_batch_size": 32, "num_train_epochs": 1},
        "output": str(output),
    }
