"""Linear modules without a role, each with the reason."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from ailora.roles.detect import find_linear_modules, modules_bypassing_adapters, weight_shape
from ailora.roles.projection import Projection

#: Regular expression of a component of a module's name -> reason. The first match counts: an expert's `gate` belongs to
#: an expert.
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
    """A linear module without a role, or a module that computes past any adapter.

    Attributes:
        module: Name of the module.
        shape: Shape (out, in). None for a module that computes past adapters.
        reason: Reason for the missing role.
    """

    module: str
    shape: tuple[int, int] | None
    reason: str


def find_unmatched(model: nn.Module, projections: Iterable[Projection]) -> tuple[UnmatchedModule, ...]:
    """Find the linear modules that are no projections, and the modules that compute past any adapter.

    Args:
        model: The model.
        projections: Its projections, from `find_projections`.

    Returns:
        Unmatched linear modules in the order of the model, then the modules that compute past adapters.
    """
    matched = {projection.module for projection in projections}
    unmatched = [
        UnmatchedModule(name, weight_shape(module), _reason(name))
        for name, module in find_linear_modules(model).items()
        if name not in matched
    ]
    return (
        *unmatched,
        *(UnmatchedModule(name, None, reason) for name, reason in modules_bypassing_adapters(model).items()),
    )


def _reason(module: str) -> str:
    reasons = (reason for part, reason in _REASONS.items() if re.search(rf"(^|\.)({part})(\.|$)", module))
    return next(reasons, "no rule names it")
