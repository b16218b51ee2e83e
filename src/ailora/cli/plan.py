"""`ailora plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from ailora.cli.options import RoleNames, parse_role_names


def plan(
    model: Annotated[str, typer.Argument(help="Hub id, local folder, or builtin:minilm.")],
    policy: Annotated[str, typer.Option(help="ailora, reversed, pissa, milora or lora.")] = "ailora",
    rank: Annotated[int, typer.Option(help="The rank r.")] = 8,
    alpha: Annotated[float | None, typer.Option(help="Default: the rank.")] = None,
    role: Annotated[list[str] | None, typer.Option(help="Adapt this role; may be repeated.")] = None,
    role_names: RoleNames = None,
    form: Annotated[str, typer.Option(help="anchored, stock or residual.")] = "anchored",
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show what every module will get. Reads the configuration only, no weights."""
    import json as json_module

    from ailora.cli.tables import console, plan_table
    from ailora.errors import InputError
    from ailora.inits import PRESETS
    from ailora.model_loading import load_on_meta
    from ailora.plan import make_plan
    from ailora.recipes.config.method import Preset, parse_method

    method = parse_method(policy)
    if not isinstance(method, Preset):
        raise InputError(f"policy '{method}' has no plan of ours; policies with one: {', '.join(PRESETS)}")
    made = make_plan(
        load_on_meta(model),
        method.policy,
        rank=rank,
        alpha=alpha,
        roles=role,
        role_names=parse_role_names(role_names),
        form=form,
    )
    if json:
        typer.echo(json_module.dumps(made.to_dict()))
    else:
        console.print(plan_table(made))
