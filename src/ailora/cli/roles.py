"""`ailora roles`."""

from __future__ import annotations

from ailora.cli.options import Json, Model, RoleNames, parse_role_names


def roles(model: Model, role_names: RoleNames = None, as_json: Json = False) -> None:
    """Show each module's role, the rows of roles in fused weights, and modules without a role. Reads no weights."""
    from dataclasses import asdict

    from ailora.cli.tables import console, print_json, projection_table, unmatched_table
    from ailora.model_loading import load_on_meta
    from ailora.roles import find_projections, find_unmatched

    skeleton = load_on_meta(model)
    projections = find_projections(skeleton, role_names=parse_role_names(role_names))
    unmatched = find_unmatched(skeleton, projections)
    if as_json:
        print_json({"projections": [*map(asdict, projections)], "unmatched": [*map(asdict, unmatched)]})
        return
    console.print(projection_table(projections))
    if unmatched:
        console.print(unmatched_table(unmatched))
