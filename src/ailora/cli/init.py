"""`ailora init`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ailora.cli.options import Alpha, Force, Json, Model, NoCache, Out, Policy, Rank, RoleNames, Roles, parse_role_names


def init(
    model: Model,
    out: Out,
    policy: Policy = "ailora",
    rank: Rank = 8,
    alpha: Alpha = None,
    roles: Roles = None,
    role_names: RoleNames = None,
    form: Annotated[str, typer.Option(help="Form of the adapter: anchored or stock.")] = "anchored",
    task_type: Annotated[
        str | None, typer.Option(help="Task type of PEFT, such as SEQ_CLS; default: from the model's configuration.")
    ] = None,
    num_labels: Annotated[int | None, typer.Option(min=1, help="Number of classes of a classification head.")] = None,
    rslora: Annotated[bool, typer.Option("--rslora", help="Use the scaling alpha / sqrt(r).")] = False,
    dora: Annotated[bool, typer.Option("--dora", help="Write a DoRA adapter.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of random factors and of new heads.")] = 0,
    device: Annotated[str, typer.Option(help="Device for decompositions: cpu or cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(min=1, help="Number of processes, which share the cores.")] = 1,
    no_cache: NoCache = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate memory and time; write nothing.")] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write the initial adapter of a model without loading the model. If interrupted, the same command resumes."""
    import os

    from ailora.checkpoints import InitPlan
    from ailora.checkpoints import init as init_checkpoint
    from ailora.cli.tables import print_report

    options: dict[str, Any] = {"policy": policy, "rank": rank, "alpha": alpha, "roles": roles}
    options |= {"role_names": parse_role_names(role_names), "form": form, "task_type": task_type}
    options |= {"num_labels": num_labels, "rslora": rslora, "dora": dora, "seed": seed}
    if dry_run:
        print_report("estimates", InitPlan.from_model(model, **options).estimate(device=device), as_json=as_json)
        return
    report = init_checkpoint(model, out, device=device, workers=workers, cached=not no_cache, force=force, **options)
    # torchrun and `accelerate launch` run this command in several processes. The process group has ended, so only the
    # environment tells which process this is.
    if os.environ.get("RANK", "0") == "0":
        print_report(f"written to {out}", report.to_dict(), as_json=as_json)
