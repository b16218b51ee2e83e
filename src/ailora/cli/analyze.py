"""`ailora analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ailora.cli.options import Force, Json, RoleNames, parse_role_names

if TYPE_CHECKING:
    from ailora.analysis.analysis_settings import Points


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
    from ailora.analysis.analysis_folder import validate_output_dir
    from ailora.cli.tables import console
    from ailora.model_loading import model_folder
    from ailora.plots.analysis_figures import write_analysis

    models = after or []
    # Refused before the analysis, which takes long.
    validate_output_dir(out.expanduser(), [model_folder(base), *map(Path, models)], force=force)
    made = compare(
        base,
        models,
        roles=[role.strip() for role in roles.split(",") if role.strip()],
        role_names=parse_role_names(role_names),
        rank=rank,
        points=cast("Points", points),
        perplexity=perplexity,
        top=top,
        epsilon=epsilon,
    )
    write_analysis(made, out, force=force)
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
