"""`ailora analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ailora.cli.options import Force, Json, RoleNames, parse_role_names


def analyze(
    base: Annotated[str, typer.Argument(help="Local folder, hub id in the cache, or builtin:minilm.")],
    after: Annotated[
        list[str] | None, typer.Argument(help="What was made of it: adapters, runs of `ailora train`, models.")
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    roles: Annotated[str, typer.Option(help="Which projections, such as query,key,value.")] = "query,value",
    rank: Annotated[int, typer.Option(help="Directions of the principal and the minor subspace.")] = 8,
    points: Annotated[str, typer.Option(help="Points of the embedding: layers, heads; auto: heads of few layers.")] = (
        "auto"
    ),
    perplexity: Annotated[float | None, typer.Option(help="Of t-SNE; default: a quarter of the points.")] = None,
    top: Annotated[int, typer.Option(help="Largest directions that may be intruders.")] = 10,
    epsilon: Annotated[float, typer.Option(help="Cosine below which a direction is an intruder.")] = 0.5,
    role_names: RoleNames = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Compare weights before and after fine-tuning: where they lie, what was added, what their spectra are."""
    import json as json_module

    from ailora.analysis import analyze as compare
    from ailora.cli.tables import console

    made = compare(
        base,
        after or [],
        out,
        roles=[role.strip() for role in roles.split(",") if role.strip()],
        role_names=parse_role_names(role_names),
        force=force,
        rank=rank,
        points=points,
        perplexity=perplexity,
        top=top,
        epsilon=epsilon,
    )
    if json:
        typer.echo(json_module.dumps({"out": str(out), **made.info}))
        return
    console.print(_table(made))
    for line in made.info["findings"]:
        console.print(f"- {line}")
    for note in made.info["notes"]:
        console.print(f"note: {note}")
    console.print(f"Tables and figures: {out}")


def _table(made: Any) -> Any:
    """A line for each model and role, the mean over its layers."""
    from rich.table import Table

    from ailora.analysis.table_ops import mean_of, rows_where

    table = Table("model", "role", "weights", "|W|", "|dW|", "|dW|/|W|", "effective rank of dW", "intruders")
    for model in ("base", *made.info["after"]):
        for role in made.info["settings"]["roles"]:
            weights, updates = (rows_where(each, model=model, role=role) for each in (made.spectra, made.deltas))
            if not weights:
                continue
            cells = [(weights, "norm"), (updates, "norm"), (updates, "relative"), (updates, "effective_rank")]
            shown = (f"{mean_of(rows, column):.4g}" if rows else "" for rows, column in cells)
            intruders = f"{mean_of(weights, 'intruders'):.2g}" if updates else ""
            table.add_row(model, role, str(len(weights)), *shown, intruders)
    table.title, table.title_justify = "mean over layers", "left"
    return table
