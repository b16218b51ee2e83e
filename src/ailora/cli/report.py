"""`ailora report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ailora.cli.options import Bootstrap, ForceFile, Scale


def report(
    sources: Annotated[
        list[Path],
        typer.Argument(help="Folders of runs, studies or analyses, or study files.", metavar="RUN|STUDY|ANALYSIS..."),
    ],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option(help="Folder to which every chart is also written, as SVG, PDF and PNG.")
    ] = None,
    scale: Scale = None,
    bootstrap: Bootstrap = True,
    force: ForceFile = False,
) -> None:
    """Write a self-contained HTML page about runs, studies and analyses. Exit with code 1 if one cannot be shown."""
    from ailora.checkpoints.output_file import validate_output_file
    from ailora.cli.tables import print_line
    from ailora.formatting import escape_controls, pluralize
    from ailora.report.build import build_page
    from ailora.report.html import write_figures, write_page
    from ailora.report.inputs import find_read_paths

    # The page must not overwrite a file that it is built from.
    reads = [path for source in sources for path in find_read_paths(source, scale)]
    out = validate_output_file(out, force=force, reads=reads)
    page = build_page(sources, scale=scale, bootstrap=bootstrap)
    write_page(page, out, force=force)
    print_line(f"written to {out}")
    if figures is not None:
        count = write_figures(page, figures, force=force)
        print_line(f"{pluralize(count, 'chart')} written to {figures}")
    # An incomplete page is written too, so only the exit code tells a script that something is missing.
    for problem in page.problems:
        typer.echo(f"ailora: not shown on the page: {escape_controls(problem)}", err=True)
    if page.problems:
        raise typer.Exit(1)
