"""Arguments and options of more than one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="Model: a local folder, a hub id in the cache, or builtin:minilm.")]
Adapter = Annotated[Path, typer.Argument(help="Folder of an adapter, or of a run.")]
Run = Annotated[Path, typer.Argument(help="Folder of a finished run.")]
Config = Annotated[Path, typer.Argument(help="Configuration of a run (YAML).")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Values that override the file, such as adapter.rank=4.", metavar="[KEY=VALUE]..."),
]
StudyOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Values that override the file, such as base.adapter.rank=4 or margin=0.02.", metavar="[KEY=VALUE]..."
    ),
]

Policy = Annotated[str, typer.Option(help="Policy: ailora, reversed, pissa, milora or lora.")]
Rank = Annotated[int, typer.Option(help="Rank r of the factors.")]
Alpha = Annotated[float | None, typer.Option(help="Alpha, which sets the scaling alpha / r; default: the rank.")]
Roles = Annotated[
    list[str] | None, typer.Option("--role", help="Role to adapt; may be repeated; default: query and value.")
]
RoleNames = Annotated[
    list[str] | None,
    typer.Option("--role-name", help="REGEX=ROLE: role of the modules in whose names REGEX is found; may be repeated."),
]
Out = Annotated[Path, typer.Option(help="Folder to write.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Do not use the cache of decompositions.")]
Scale = Annotated[
    str | None,
    typer.Option(help="Name of an entry of `scales:` in the study file, whose keys replace those of the file."),
]
Bootstrap = Annotated[
    bool, typer.Option(help="Also compute bootstrap intervals over seeds and examples, from saved predictions.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace the files of an earlier command, and others with the same names."),
]
ForceFile = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]


def parse_role_names(values: list[str] | None) -> dict[str, str] | None:
    """Parse the values of `--role-name`, such as `wq$=query`.

    Args:
        values: Values of the option. None if the option was not used.

    Returns:
        Regular expression for names of modules -> role. None if the option was not used.

    Raises:
        typer.BadParameter: A value is not of the form `REGEX=ROLE`.
    """
    if not values:
        return None
    # Split at the last "=", because a regular expression may contain "=".
    pairs = [value.rpartition("=") for value in values]
    for value, (pattern, equals, _) in zip(values, pairs, strict=True):
        if not (pattern and equals):
            raise typer.BadParameter(f"expected REGEX=ROLE, got {value!r}", param_hint="--role-name")
    return {pattern: role for pattern, _, role in pairs}
