"""`ailora suggest-lr`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ailora.cli.options import Json


def suggest_lr(
    config: Annotated[Path, typer.Argument(help="A YAML configuration.")],
    lora_rate: Annotated[float, typer.Option(help="A learning rate that is good for plain LoRA on this task.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="dotted.key=value", metavar="[KEY=VALUE]...")] = None,
    batches: Annotated[int, typer.Option(min=2, help="Batches to measure on.")] = 4,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a batch.")] = 16,
    json: Json = False,
) -> None:
    """Propose a learning rate for each role, from the curvature of the loss at the start and at plain LoRA's."""
    import json as json_module
    from dataclasses import asdict

    from ailora.cli.tables import console, suggestion_table
    from ailora.recipes.config.loader import load_config
    from ailora.recipes.suggest_lr import suggest

    made = suggest(load_config(config, overrides or []), lora_rate, batches=batches, rows=rows)
    if json:
        typer.echo(json_module.dumps(asdict(made) | {"multipliers": made.multipliers}))
        return
    console.print(suggestion_table(made))
    console.print(
        f"training.learning_rate={made.learning_rate:.2g}",
        f"'adapter.learning_rates={{{', '.join(f'{role}: {m:g}' for role, m in made.multipliers.items())}}}'",
    )
    console.print("A rule of thumb from the start alone: try a third, half and twice of it as well.")
