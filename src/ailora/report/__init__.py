"""Reports: studies, runs and analyses as a self-contained HTML page."""

from ailora.report.build import build_page
from ailora.report.html import render, write_figures, write_page

__all__ = ["build_page", "render", "write_figures", "write_page"]
