"""Linear modules without a role, each with the reason."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from ailora.roles.detect import find_bypassing_modules, find_linear_modules, weight_shape
from ailora.roles.projection import Projection

#: Regular expression for components of a module's name -> reason. The first match counts, so the `gate` of an expert
#: is reported as an expert.
_REASONS = {
    r"(shared_)?experts?(_\d+)?": "an expert, which gets no adapter unless role_names names it",
    r"mamba|linear_attn|lightning|conv|mixer\.(in|out)_proj": "linear attention, state space or convolution: no query",
    r"indexer|compressor": "selects or compresses tokens for attention",
    r"kv_a_proj_with_mqa|kv_a_proj|q_a_proj": "a down-projection of latent attention: the up-projection has the role",
    r"router|gate": "a router or gate",
    r"lm_head|classifier|score|cls|pooler|heads?|qa_outputs|predictions": "a head",
}


@dataclass(frozen=True)
class UnmatchedModule:
    """Linear module without a role, or module that bypasses adapters on its submodules.

    Attributes:
        module: Name of the module.
        shape: Shape (out, in) of a linear module. None for a module that bypasses adapters.
        reason: Reason why the module has no role; for a module that bypasses adapters, its class and how it does so.
    """

    module: str
    shape: tuple[int, int] | None
    reason: str


def find_unmatched(model: nn.Module, projections: Iterable[Projection]) -> tuple[UnmatchedModule, ...]:
    """Find the linear modules without a role, and the modules that bypass adapters on their submodules.

    Args:
        model: Model with the modules.
        projections: Result of `find_projections` for the model.

    Returns:
        Linear modules in the order of the model, then modules that bypass adapters.
    """
    matched = {projection.module for projection in projections}
    unmatched = [
        UnmatchedModule(name, weight_shape(module), _find_reason(name))
        for name, module in find_linear_modules(model).items()
        if name not in matched
    ]
    return (
        *unmatched,
        *(UnmatchedModule(name, None, reason) for name, reason in find_bypassing_modules(model).items()),
    )


def _find_reason(module: str) -> str:
    reasons = (reason for pattern, reason in _REASONS.items() if re.search(rf"(^|\.)({pattern})(\.|$)", module))
    return next(reasons, "no naming rule matches")
