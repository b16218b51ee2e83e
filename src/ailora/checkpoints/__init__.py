"""Checkpoints larger than memory: adapters for them, exports and merges of adapters, and what can be said of either."""

from ailora.checkpoints.export_adapter import ExportReport, export
from ailora.checkpoints.init_plan import InitPlan
from ailora.checkpoints.initialize import InitReport, init
from ailora.checkpoints.inspect_path import inspect
from ailora.checkpoints.merge_adapter import MergeReport, merge
from ailora.checkpoints.verify_adapter import Check, Verdict, verify

__all__ = [
    "Check",
    "ExportReport",
    "InitPlan",
    "InitReport",
    "MergeReport",
    "Verdict",
    "export",
    "init",
    "inspect",
    "merge",
    "verify",
]
