"""A page as one HTML file that needs no network, no other file, and no script but its own."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from ailora.atomic_io import write_text
from ailora.checkpoints.output_dir import resolve_output_path, writing
from ailora.checkpoints.output_file import validate_output_file
from ailora.formatting import pluralize
from ailora.plots.chart_spec import Chart
from ailora.plots.matplotlib_backend import save_figure
from ailora.plots.plotly_backend import count_missing, plotly_figure
from ailora.report.document import Page

#: Of figures for papers.
_FORMATS = ("svg", "pdf", "png")
_ASSETS = files("ailora.report") / "assets"
_NOT_IN_FILE_NAMES = re.compile("[^A-Za-z0-9._-]+")
_BACKTICKS = re.compile("`([^`\n]+)`")
#: What could end a script element, or begin a comment in one; JSON has another way to write each.
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def write_page(page: Page, out: Path, *, force: bool = False) -> None:
    """Write a page atomically.

    Args:
        page: The page.
        out: The file; an earlier page of ours is replaced.
        force: Replace another file too.

    Raises:
        InputError: There is no folder for it, another file is there, or it cannot be written.
    """
    out = validate_output_file(out, force=force)
    with writing(out):
        write_text(out, render(page))


def write_figures(page: Page, folder: Path, *, force: bool = False) -> int:
    """Write every chart as SVG, PDF and PNG.

    Args:
        page: The page.
        folder: The folder, made where it is missing; earlier figures of ours are replaced.
        force: Replace other files too.

    Returns:
        The number of charts.

    Raises:
        InputError: The folder cannot be made or written to, or another file is in the place of a figure.
    """
    charts = list(page.charts)
    folder = resolve_output_path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        files = {
            folder / f"{name}.{suffix}": chart
            for chart, name in zip(charts, unique_file_names(charts), strict=True)
            for suffix in _FORMATS
        }
        for file in files:
            validate_output_file(file, force=force)
        for file, chart in files.items():
            save_figure([chart], file, columns=1)
    return len(charts)


def render(page: Page) -> str:
    """Render a page as HTML."""
    charts = list(page.charts)
    figures = {f"f{number}": plotly_figure(chart) for number, chart in enumerate(charts, start=1)}
    names = unique_file_names(charts)
    shown = {
        id(chart): {"id": key, "name": name, "caption": _caption(chart), "height": figure["layout"]["height"]}
        for chart, name, (key, figure) in zip(charts, names, figures.items(), strict=True)
    }
    scripts = [*([_plotly()] if charts else []), _asset("page.js")]
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["code_spans"] = code_spans
    return environment.from_string(_asset("page.html")).render(
        page=page,
        version=version("ailora"),
        shown=lambda chart: shown[id(chart)],
        policy=_policy(scripts),
        style=Markup(_asset("style.css")),
        data=Markup(json_text(figures)),
        scripts=[Markup(script) for script in scripts],
    )


def code_spans(text: str) -> Markup:
    """Escape a text, and mark what stands in backticks as code."""
    return Markup(_BACKTICKS.sub(r"<code>\1</code>", str(escape(text))))


def json_text(data: object) -> str:
    """Write JSON that is inert inside a script element, whatever its texts are.

    Raises:
        ValueError: A number is not finite, for which JSON has no word.
    """
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.translate(str.maketrans(_UNSAFE))


def unique_file_names(charts: Sequence[Chart]) -> list[str]:
    """Name the file of each chart after the chart, with a number where another chart has the same name."""
    names: list[str] = []
    for chart in charts:
        name = _NOT_IN_FILE_NAMES.sub("-", chart.name).strip("-.") or "chart"
        same = sum(other == name or other.startswith(f"{name}~") for other in names)
        names.append(f"{name}~{same + 1}" if same else name)
    return names


def _caption(chart: Chart) -> str:
    missing = count_missing(chart)
    note = f" {pluralize(missing, 'value is', 'values are')} not a finite number and left out." if missing else ""
    return chart.caption + note


def _policy(scripts: Sequence[str]) -> str:
    """Write a Content-Security-Policy: these scripts and no others, and no network at all.

    Plotly sets styles of single elements; it makes pictures of charts in memory.
    """
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    rules = {
        "default-src": "'none'",
        "script-src": hashes,
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _plotly() -> str:
    """Plotly's own script, as its Python package carries it."""
    return (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
