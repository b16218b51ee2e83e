"""`ailora train`."""

from __future__ import annotations

from typing import Annotated

import typer

from ailora.cli.options import Config, NoCache, Overrides


def train(
    config: Config,
    overrides: Overrides = None,
    no_cache: NoCache = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate data and settings, and estimate the cost, without training.")
    ] = False,
) -> None:
    """Train and evaluate a run. If interrupted or killed, the same command resumes."""
    import sys
    from contextlib import nullcontext

    from ailora.cli.tables import console, print_dry_run, print_line, result_table
    from ailora.distributed import is_main
    from ailora.recipes import registry
    from ailora.recipes.config.loader import load_config
    from ailora.recipes.dry_run import dry_run as try_out
    from ailora.spectral import without_cache

    run_config = load_config(config, overrides or [])
    if "tune" in run_config.model_fields_set and is_main():
        print("ailora: the section tune is ignored: only `ailora tune` uses it", file=sys.stderr)
    if dry_run:
        print_dry_run(try_out(run_config))
        return
    with without_cache() if no_cache else nullcontext():
        result = registry.run(run_config)
    if is_main():
        console.print(result_table({run_config.output: result}))
        print_line(f"written to {run_config.output}")
