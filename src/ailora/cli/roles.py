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
    """Show which module plays which role. Reads the configuration only, no weights."""
    import dataclasses
    import json as json_module

    from ailora.cli.tables import console, projection_table
    from ailora.recipes.models import meta_model
    from ailora.roles import find_projections

    projections = find_projections(meta_model(model), role_names=parse_role_names(role_names))
    if json:
        typer.echo(json_module.dumps([dataclasses.asdict(p) for p in projections]))
    else:
        console.print(projection_table(projections))
