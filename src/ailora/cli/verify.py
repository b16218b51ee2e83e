"""`ailora verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from ailora.cli.options import Adapter, Json


def verify(
    adapter: Adapter,
    base: Annotated[str, typer.Option(help="Base model: a local folder, a hub id in the cache, or builtin:minilm.")],
    as_json: Json = False,
) -> None:
    """Check that an adapter is intact and belongs to this base model. Exit with code 1 if a check fails."""
    from ailora.checkpoints import verify as check
    from ailora.cli.tables import check_table, console, print_json

    verdict = check(adapter, base)
    if as_json:
        print_json(verdict.to_dict())
    else:
        console.print(check_table(verdict))
    if not verdict.passed:
        raise typer.Exit(1)
