"""Plans: adapter settings of every projection, without tensors."""

from ailora.plan.adapter_metadata import METADATA_NAME, AdapterMetadata, find_metadata
from ailora.plan.adapter_plan import Form, Plan, PlannedAdapter
from ailora.plan.make_plan import make_plan

__all__ = ["METADATA_NAME", "AdapterMetadata", "Form", "Plan", "PlannedAdapter", "find_metadata", "make_plan"]
