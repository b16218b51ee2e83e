"""Analysis of weights before and after fine-tuning."""

from ailora.analysis.analysis_result import Analysis, load_analysis
from ailora.analysis.weight_analysis import analyze

__all__ = ["Analysis", "analyze", "load_analysis"]
