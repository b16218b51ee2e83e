"""A page as one HTML file that needs nothing else: no network, no other file, no script but its own."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from ailora.atomic_io import write_text
from ailora.errors import InputError
from ailora.formatting import pluralize
from ailora.plots.chart_spec import Chart
from ailora.plots.matplotlib_backend import save_figure
from ailora.plots.plotly_backend import count_missing, plotly_figure
from ailora.report.document import Page

#: Of a figure for papers.
FORMATS = ("svg", "pdf", "png")
_ASSETS = files("ailora.report") / "assets"
_NO_NAME = re.compile("[^A-Za-z0-9._-]+")
_TICKED = re.compile("`([^`\n]+)`")
#: What could end a script element, or begin a comment in one; JSON has another way to write each.
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def write_page(page: Page, out: Path) -> None:
    """Write a page, whole or not at all.

    Raises:
        InputError: there is no folder for it, or it cannot be written.
    """
    check_place(out)
    try:
        write_text(out, render(page))
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}") from None


def write_figures(page: Page, folder: Path) -> int:
    """Write every chart as SVG, PDF and PNG; how many charts these were.

    Raises:
        InputError: the folder cannot be made or written to.
    """
    charts = list(page.charts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for chart, name in zip(charts, file_names(charts), strict=True):
            for ending in FORMATS:
                save_figure([chart], folder / f"{name}.{ending}", columns=1)
    except OSError as error:
        raise InputError(f"cannot write figures to {folder}: {error.strerror}") from None
    return len(charts)


def check_place(out: Path) -> None:
    """Refuse a file that could not be written, before anything is read.

    Raises:
        InputError: its folder is missing, or it is a folder.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder: the report is a file, such as {out / 'report.html'}")
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}")


def render(page: Page) -> str:
    """A page as HTML."""
    charts = list(page.charts)
    figures = {f"f{number}": plotly_figure(chart) for number, chart in enumerate(charts, start=1)}
    names = file_names(charts)
    shown = {
        id(chart): {"id": key, "name": name, "caption": _caption(chart), "height": figure["layout"]["height"]}
        for chart, name, (key, figure) in zip(charts, names, figures.items(), strict=True)
    }
    scripts = [*([_plotly()] if charts else []), _asset("page.js")]
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["ticked"] = ticked
    return environment.from_string(_asset("page.html")).render(
        page=page,
        shown=lambda chart: shown[id(chart)],
        policy=_policy(scripts),
        style=Markup(_asset("style.css")),
        data=Markup(json_text(figures)),
        scripts=[Markup(script) for script in scripts],
    )


def ticked(text: str) -> Markup:
    """A text whose words in backticks are code; escaped."""
    return Markup(_TICKED.sub(r"<code>\1</code>", str(escape(text))))


def json_text(data: Any) -> str:
    """JSON that is inert inside a script element, whatever its texts are.

    Raises:
        ValueError: a number is not finite, for which JSON has no word.
    """
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.translate(str.maketrans(_UNSAFE))


def file_names(charts: Sequence[Chart]) -> list[str]:
    """A name for each chart that a file can have: its own, where no other has it."""
    names: list[str] = []
    for chart in charts:
        name = _NO_NAME.sub("-", chart.name).strip("-.") or "chart"
        same = sum(other == name or other.startswith(f"{name}~") for other in names)
        names.append(f"{name}~{same + 1}" if same else name)
    return names


def _caption(chart: Chart) -> str:
    missing = count_missing(chart)
    told = f" {pluralize(missing, 'value is', 'values are')} not a finite number and left out." if missing else ""
    return chart.caption + told


def _policy(scripts: Sequence[str]) -> str:
    """A Content-Security-Policy: these scripts and no others, and no network at all.

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
