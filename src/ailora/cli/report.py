"""`ailora report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    sources: Annotated[
        list[Path],
        typer.Argument(help="Folders of runs, of a study or of an analysis, and study files.", metavar="RUN|STUDY|..."),
    ],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option(help="Write every figure to this folder as SVG, PDF and PNG too.")
    ] = None,
    scale: Annotated[str | None, typer.Option(help="A set of keys below `scales:` of a study file.")] = None,
    bootstrap: Annotated[bool, typer.Option(help="Intervals over seeds and examples, from kept predictions.")] = True,
) -> None:
    """Write one self-contained page on runs, studies and analyses; exit code 1 where a part had to be left out."""
    from ailora.cli.tables import console
    from ailora.report.build import build_page
    from ailora.report.html import validate_output_file, write_figures, write_page

    validate_output_file(out)
    page = build_page(sources, scale=scale, bootstrap=bootstrap)
    write_page(page, out)
    console.print(f"written to {out}")
    if figures is not None:
        console.print(f"{write_figures(page, figures)} figures written to {figures}")
    for problem in page.problems:
        typer.echo(f"ailora: left out: {problem}", err=True)
    if page.problems:
        raise typer.Exit(1)
