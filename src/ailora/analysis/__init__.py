"""Weights and runs as numbers, and the numbers as figures."""

from ailora.analysis.analysis import analyze
from ailora.analysis.pictures import analysis_charts
from ailora.analysis.result import Analysis, load_analysis

__all__ = ["Analysis", "analysis_charts", "analyze", "load_analysis"]
