"""`ailora tune`."""

from __future__ import annotations

from typing import Annotated

import typer

from ailora.cli.options import Config, Json, Overrides


def tune(
    config: Config,
    overrides: Overrides = None,
    workers: Annotated[int, typer.Option(min=1, help="Concurrent trials on this machine.")] = 1,
    as_json: Json = False,
) -> None:
    """Search for learning rate, roles, rank and init within a budget, and keep the best run. A rerun resumes."""
    from ailora.cli.quiet import hide_loading_messages
    from ailora.cli.tables import console, print_json, print_line, tune_table
    from ailora.cli.tune_progress import TuneProgress
    from ailora.recipes.config.loader import load_config
    from ailora.tune.tune_run import open_search, run_search

    hide_loading_messages()
    storage, design = open_search(load_config(config, overrides or []))
    with TuneProgress(storage, design, quiet=as_json) as progress:
        result = run_search(storage, design, workers=workers, on_poll=progress.update)
    if as_json:
        print_json(result.to_dict())
        return
    console.print(tune_table(result))
    for sentence in result.sentences:
        console.print(sentence)
    print_line(f"written to {result.output}")
