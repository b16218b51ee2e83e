"""The linear modules of a model that have no role, and why."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from ailora.roles.detect import bypassed, linear_modules, weight_shape
from ailora.roles.projection import Projection

#: Part of a module's name -> what it is. The first that fits counts.
_REASONS = {
    r"(shared_)?experts?(_\d+)?": "an expert: experts are left alone; role_names can name them",
    r"mamba|linear_attn|lightning|conv|mixer\.(in|out)_proj": "linear attention, state space or convolution: no query",
    r"indexer|compressor": "picks or packs tokens for the attention",
    r"kv_a_proj_with_mqa|kv_a_proj|q_a_proj": "the narrow half of a latent projection: the other half has the roles",
    r"router|gate": "a router or gate",
    r"lm_head|classifier|score|cls|pooler|heads?|qa_outputs|predictions": "a head",
}


@dataclass(frozen=True)
class UnmatchedModule:
    """A linear module without a role.

    Attributes:
        module: its name.
        shape: (out, in).
        reason: why it has none.
    """

    module: str
    shape: tuple[int, int] | None
    reason: str


def find_unmatched(model: nn.Module, projections: Iterable[Projection]) -> tuple[UnmatchedModule, ...]:
    """The linear modules of a model that are no projections, in its order, then what computes past adapters."""
    known = {projection.module for projection in projections}
    rest = [
        UnmatchedModule(name, weight_shape(module), _reason(name))
        for name, module in linear_modules(model).items()
        if name not in known
    ]
    return (*rest, *(UnmatchedModule(name, None, reason) for name, reason in bypassed(model).items()))


def _reason(module: str) -> str:
    found = (reason for part, reason in _REASONS.items() if re.search(rf"(^|\.)({part})(\.|$)", module))
    return next(found, "no rule names it")
