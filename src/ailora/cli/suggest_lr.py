"""`ailora suggest-lr`."""

from __future__ import annotations

from typing import Annotated

import typer

from ailora.cli.options import Config, Json, Overrides


def suggest_lr(
    config: Config,
    lora_rate: Annotated[float, typer.Option(help="Good learning rate of plain LoRA on this task.")],
    overrides: Overrides = None,
    batches: Annotated[int, typer.Option(min=2, help="Number of batches to measure.")] = 4,
    rows: Annotated[int, typer.Option(min=1, help="Number of rows in a batch.")] = 16,
    as_json: Json = False,
) -> None:
    """Suggest a learning rate for each role: compare the loss curvature at its initial factors with plain LoRA's."""
    from dataclasses import asdict

    from ailora.cli.tables import console, print_json, print_line, suggestion_table
    from ailora.recipes.config.loader import load_config
    from ailora.recipes.suggest_lr import suggest

    suggestion = suggest(load_config(config, overrides or []), lora_rate, batches=batches, rows=rows)
    if as_json:
        # `asdict` omits properties.
        print_json(asdict(suggestion) | {"multipliers": suggestion.multipliers})
        return
    console.print(suggestion_table(suggestion))
    # `adapter.learning_rates` holds multiples of `training.learning_rate`.
    multipliers = ", ".join(f"{role}: {multiplier:g}" for role, multiplier in suggestion.multipliers.items())
    print_line(f"training.learning_rate={suggestion.learning_rate:.2g} 'adapter.learning_rates={{{multipliers}}}'")
    console.print("A rule of thumb, from the curvature before training. Also try a third, half and twice these rates.")
