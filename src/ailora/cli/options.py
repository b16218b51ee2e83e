"""Arguments and options of several commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="Local folder, hub id in the cache, or builtin:minilm.")]
Adapter = Annotated[Path, typer.Argument(help="The folder of an adapter, or of a run.")]
Run = Annotated[Path, typer.Argument(help="The folder of a finished run.")]
Config = Annotated[Path, typer.Argument(help="A YAML configuration.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="dotted.key=value", metavar="[KEY=VALUE]...")]

Policy = Annotated[str, typer.Option(help="ailora, reversed, pissa, milora or lora.")]
Rank = Annotated[int, typer.Option(help="The rank r.")]
Alpha = Annotated[float | None, typer.Option(help="Default: the rank.")]
Roles = Annotated[list[str] | None, typer.Option("--role", help="Adapt this role; may be repeated.")]
RoleNames = Annotated[
    list[str] | None,
    typer.Option("--role-name", help="REGEX=ROLE, for modules that no rule knows; may be repeated."),
]
Out = Annotated[Path, typer.Option(help="The folder to write.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither read nor keep decompositions.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what the folder holds.")]
ForceFile = Annotated[bool, typer.Option("--force", help="Replace a file that is there and that ailora did not write.")]


def parse_role_names(values: list[str] | None) -> dict[str, str] | None:
    """Parse the values of `--role-name`, such as `wq$=query`.

    Args:
        values: Values of the option; None without any.

    Returns:
        Mapping of patterns over module names to roles; None without any.

    Raises:
        typer.BadParameter: A value has no `=`.
    """
    if not values:
        return None
    pairs = [value.rpartition("=") for value in values]
    if not all(pattern and equals for pattern, equals, _ in pairs):
        raise typer.BadParameter("give REGEX=ROLE", param_hint="--role-name")
    return {pattern: role for pattern, _, role in pairs}
