"""`ailora analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ailora.cli.options import Force, Json, Model, Out, RoleNames, parse_role_names

if TYPE_CHECKING:
    from rich.table import Table

    from ailora.analysis import Analysis
    from ailora.analysis.analysis_settings import PointKind


def analyze(
    base: Model,
    after: Annotated[
        list[str] | None,
        typer.Argument(help="Results of fine-tuning the base: adapters, runs of `ailora train`, or models."),
    ] = None,
    *,
    out: Out,
    roles: Annotated[str, typer.Option(help="Roles to compare, such as query,key,value.")] = "query,value",
    rank: Annotated[int, typer.Option(help="Dimension of the principal and of the minor subspace.")] = 8,
    points: Annotated[
        str, typer.Option(help="Points of the embedding: layers, heads, or auto (heads if there are few layers).")
    ] = "auto",
    perplexity: Annotated[
        float | None, typer.Option(help="Perplexity of t-SNE; default: a quarter of the number of points, at most 30.")
    ] = None,
    top: Annotated[int, typer.Option(help="Number of left singular vectors to test for intruders.")] = 10,
    epsilon: Annotated[
        float, typer.Option(help="Cosine to the base's vectors below which a singular vector is an intruder.")
    ] = 0.5,
    directions: Annotated[
        bool,
        typer.Option("--directions", help="Also locate updates and initial gradients in the spectrum of W."),
    ] = False,
    role_names: RoleNames = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Compare weights before and after fine-tuning: embeddings, updates, spectra."""
    from ailora.analysis import analyze as analyze_models
    from ailora.analysis.analysis_result import validate_output_dir
    from ailora.cli.tables import print_json, print_line
    from ailora.model_path import model_folder
    from ailora.plots.analysis_charts import write_analysis

    models = after or []
    # An analysis takes long, so an output folder that cannot be written is refused first.
    out = validate_output_dir(out, [model_folder(base), *map(Path, models)], force=force)
    result = analyze_models(
        base,
        models,
        roles=[role.strip() for role in roles.split(",") if role.strip()],
        role_names=parse_role_names(role_names),
        rank=rank,
        # `analyze_models` validates the string.
        points=cast("PointKind", points),
        perplexity=perplexity,
        top=top,
        epsilon=epsilon,
        directions=directions,
    )
    write_analysis(result, out, force=force)
    if as_json:
        print_json({"out": str(out), **result.info})
    else:
        _print_analysis(result)
        print_line(f"Tables and figures: {out}")


def _print_analysis(analysis: Analysis) -> None:
    from ailora.cli.tables import console

    console.print(_make_means_table(analysis))
    for line in analysis.info["findings"]:
        console.print(f"- {line}")
    for note in analysis.info["notes"]:
        console.print(f"note: {note}")


def _make_means_table(analysis: Analysis) -> Table:
    """Build a table with means over layers, for each model and role."""
    from ailora.analysis.table_ops import filter_rows
    from ailora.cli.tables import make_table
    from ailora.formatting import format_number

    columns = ("model", "role", "weights", "|W|", "|dW|", "|dW|/|W|", "effective rank of dW", "intruders")

    def row(model: str, role: str) -> tuple[str, ...]:
        weights = filter_rows(analysis.spectra, model=model, role=role)
        updates = filter_rows(analysis.deltas, model=model, role=role)
        if weights.empty:
            return ()
        # Select frames even for a single column, because pandas' stubs give the mean of a series no useful type.
        means = [*weights[["norm"]].mean()]
        if len(updates):
            means += [*updates[["norm", "relative", "effective_rank"]].mean(), *weights[["intruders"]].mean()]
        cells = [model, role, str(len(weights)), *map(format_number, means)]
        # The base has no update, so its row ends with empty cells.
        return *cells, *[""] * (len(columns) - len(cells))

    rows = filter(None, (row(model, role) for model in ("base", *analysis.models) for role in analysis.roles))
    return make_table("mean over layers", columns, rows)
