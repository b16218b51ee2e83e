"""Checkpoints larger than memory: adapters for them, exports and merges of adapters, and what can be said of either."""

from ailora.checkpoints.exporting import ExportReport, export
from ailora.checkpoints.initialize import InitReport, init
from ailora.checkpoints.inspecting import inspect
from ailora.checkpoints.merging import MergeReport, merge
from ailora.checkpoints.planning import Initialization
from ailora.checkpoints.verifying import Check, Verdict, verify

__all__ = [
    "Check",
    "ExportReport",
    "InitReport",
    "Initialization",
    "MergeReport",
    "Verdict",
    "export",
    "init",
    "inspect",
    "merge",
    "verify",
]
