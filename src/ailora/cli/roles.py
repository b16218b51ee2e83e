"""`ailora roles`."""

from __future__ import annotations

from typing import Annotated

import typer

from ailora.cli.options import RoleNames, parse_role_names


def roles(
    model: Annotated[str, typer.Argument(help="Hub id, local folder, or builtin:minilm.")],
    role_names: RoleNames = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show which module, and which of its rows, plays which role, and what is left alone. Reads no weights."""
    import dataclasses
    import json as json_module

    from ailora.cli.tables import console, projection_table, rest_table
    from ailora.model_loading import load_on_meta
    from ailora.roles import find_projections, find_unmatched

    made = load_on_meta(model)
    projections = find_projections(made, role_names=parse_role_names(role_names))
    rest = find_unmatched(made, projections)
    if json:
        found = {"projections": projections, "find_unmatched": rest}
        typer.echo(json_module.dumps({key: [dataclasses.asdict(x) for x in value] for key, value in found.items()}))
        return
    console.print(projection_table(projections))
    if rest:
        console.print(rest_table(rest))
