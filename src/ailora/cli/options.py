"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

RoleNames = Annotated[
    list[str] | None,
    typer.Option("--role-name", help="REGEX=ROLE, for modules that no rule knows; may be repeated."),
]

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what the folder holds.")]


def parse_role_names(values: list[str] | None) -> dict[str, str] | None:
    """`["wq$=query"]` as `{"wq$": "query"}`.

    Raises:
        typer.BadParameter: a value without `=`.
    """
    if not values:
        return None
    pairs = [value.rpartition("=") for value in values]
    if not all(pattern and equals for pattern, equals, _ in pairs):
        raise typer.BadParameter("give REGEX=ROLE", param_hint="--role-name")
    return {pattern: role for pattern, _, role in pairs}
