"""Render a page as a self-contained HTML file: it loads nothing, and runs its own scripts only."""

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
from ailora.checkpoints.output_file import validate_output_file
from ailora.checkpoints.output_path import resolve_output_path, writing
from ailora.formatting import pluralize
from ailora.plots.chart_spec import Chart
from ailora.plots.matplotlib_backend import save_figure
from ailora.plots.plotly_backend import count_missing, plotly_figure
from ailora.report.document import Page

#: File formats of figures for papers.
_FIGURE_FORMATS = ("svg", "pdf", "png")
_ASSETS = files("ailora.report") / "assets"
_NOT_IN_FILE_NAMES = re.compile("[^A-Za-z0-9._-]+")
_BACKTICKS = re.compile("`([^`\n]+)`")
#: Characters that could end a script element or begin a comment in it -> their JSON escapes.
_JSON_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def write_page(page: Page, out: Path, *, force: bool = False) -> None:
    """Write a page atomically.

    Args:
        page: The page.
        out: The file to write; an earlier page from ailora is replaced.
        force: Whether to replace any other file too.

    Raises:
        InputError: The folder is missing, another file is at `out`, or the file cannot be written.
    """
    out = validate_output_file(out, force=force)
    with writing(out):
        write_text(out, render(page))


def write_figures(page: Page, folder: Path, *, force: bool = False) -> int:
    """Write every chart as SVG, PDF and PNG.

    Args:
        page: The page.
        folder: The folder, created if missing; earlier figures from ailora are replaced.
        force: Whether to replace any other file too.

    Returns:
        The number of charts.

    Raises:
        InputError: The folder cannot be created or written to, or another file has the name of a figure.
    """
    charts = list(page.charts)
    folder = resolve_output_path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        chart_by_file = {
            folder / f"{name}.{suffix}": chart
            for chart, name in zip(charts, unique_file_names(charts), strict=True)
            for suffix in _FIGURE_FORMATS
        }
        # All files are validated before the first is drawn: a refusal must leave no figure.
        for file in chart_by_file:
            validate_output_file(file, force=force)
        for file, chart in chart_by_file.items():
            save_figure([chart], file, columns=1)
    return len(charts)


def render(page: Page) -> str:
    """Return the HTML of a page.

    Args:
        page: The page, whose strings may come from untrusted files.
    """
    charts = list(page.charts)
    figures = {f"f{number}": plotly_figure(chart) for number, chart in enumerate(charts, start=1)}
    names = unique_file_names(charts)
    # Charts are looked up by identity: they contain lists, and have no hash.
    figure_info = {
        id(chart): {"id": key, "name": name, "caption": _caption(chart), "height": figure["layout"]["height"]}
        for chart, name, (key, figure) in zip(charts, names, figures.items(), strict=True)
    }
    # Plotly's script takes most of a page (4.8 of 6 MB for a study of 1,000 trials), so a page without charts omits it.
    scripts = [*([_plotly_script()] if charts else []), _read_asset("page.js")]
    # StrictUndefined: a misspelt name in the template is an error, and not an empty text.
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["code_spans"] = code_spans
    html = environment.from_string(_read_asset("page.html")).render(
        page=page,
        version=version("ailora"),
        figure_info=lambda chart: figure_info[id(chart)],
        policy=_content_security_policy(scripts),
        style=Markup(_read_asset("style.css")),
        data=Markup(json_text(figures)),
        scripts=[Markup(script) for script in scripts],
    )
    # Python reads a file name that is not UTF-8 as text with lone surrogates, which no UTF-8 file can hold.
    return html.encode(errors="backslashreplace").decode()


def code_spans(text: str) -> Markup:
    """Return a string as HTML, with parts in backticks as code."""
    # The string is escaped before markup is added, since a name in backticks may contain markup.
    return Markup(_BACKTICKS.sub(r"<code>\1</code>", str(escape(text))))


def json_text(data: object) -> str:
    """Return JSON that is inert inside a script element, for any strings in the data.

    Args:
        data: Plain data.

    Raises:
        ValueError: A number is not finite, and has no form in JSON.
    """
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.translate(str.maketrans(_JSON_ESCAPES))


def unique_file_names(charts: Sequence[Chart]) -> list[str]:
    """Return a file name without suffix for each chart: its name, numbered where earlier charts have the same name."""
    names: list[str] = []
    for chart in charts:
        name = _NOT_IN_FILE_NAMES.sub("-", chart.name).strip("-.") or "chart"
        # Sanitized names have no tilde: a numbered name cannot equal the name of a different chart.
        same = sum(other == name or other.startswith(f"{name}~") for other in names)
        names.append(f"{name}~{same + 1}" if same else name)
    return names


def _caption(chart: Chart) -> str:
    missing = count_missing(chart)
    note = f" {pluralize(missing, 'value is', 'values are')} not a finite number and left out." if missing else ""
    return chart.caption + note


def _content_security_policy(scripts: Sequence[str]) -> str:
    """Return a Content-Security-Policy that allows these scripts, and neither other scripts nor the network."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    # Plotly sets the styles of single elements (unsafe-inline), and makes pictures of charts in memory (data, blob).
    rules = {
        "default-src": "'none'",
        "script-src": hashes,
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _read_asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _plotly_script() -> str:
    """Return the script of Plotly, from its Python package."""
    return (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
