"""`ailora train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="A YAML configuration.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="dotted.key=value", metavar="[KEY=VALUE]...")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor keep decompositions.")] = False,
) -> None:
    """Train and evaluate; the same command after a kill continues."""
    from contextlib import nullcontext

    from ailora.cli.tables import console, result_table
    from ailora.recipes import catalog
    from ailora.recipes.config import load_config
    from ailora.spectral import without_cache

    resolved = load_config(config, overrides or [])
    with without_cache() if no_cache else nullcontext():
        result = catalog.run(resolved)
    console.print(result_table({resolved.output: result}))
    console.print(f"written to {resolved.output}")
