"""One self-contained HTML page of studies, runs and analyses."""

from ailora.report.building import build
from ailora.report.page import render, write_figures, write_page

__all__ = ["build", "render", "write_figures", "write_page"]
