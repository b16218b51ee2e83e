"""`ailora plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from ailora.cli.options import Alpha, Json, Model, Policy, Rank, RoleNames, Roles, parse_role_names


def plan(
    model: Model,
    policy: Policy = "ailora",
    rank: Rank = 8,
    alpha: Alpha = None,
    roles: Roles = None,
    role_names: RoleNames = None,
    form: Annotated[str, typer.Option(help="Form of the adapter: anchored, stock or residual.")] = "anchored",
    as_json: Json = False,
) -> None:
    """Show the adapter settings of every module, from the model's configuration alone, without weights."""
    from ailora.cli.tables import console, plan_table, print_json
    from ailora.errors import InputError
    from ailora.inits import PRESETS
    from ailora.model_loading import load_on_meta
    from ailora.plan import make_plan
    from ailora.recipes.config.method import AiloraPolicy, parse_method

    method = parse_method(policy)
    if not isinstance(method, AiloraPolicy):
        raise InputError(f"policy '{method}' has no plan; policies that have a plan: {', '.join(PRESETS)}")
    result = make_plan(
        load_on_meta(model),
        method.policy,
        rank=rank,
        alpha=alpha,
        roles=roles,
        role_names=parse_role_names(role_names),
        form=form,
    )
    if as_json:
        print_json(result.to_dict())
    else:
        console.print(plan_table(result))
