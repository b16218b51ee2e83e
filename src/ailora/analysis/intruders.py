"""Intruder dimensions (arXiv 2410.21228): large singular vectors of a fine-tuned weight that the base does not have."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ailora.spectral import truncated_svd

#: How many singular vectors of the base are tried for each one that may be an intruder, before all are computed.
_TRIED = 4


def nearest_cosines(
    before: Float[Tensor, "out in_"], after: Float[Tensor, "out in_"], top: int, epsilon: float
) -> Tensor:
    """How well each of the `top` left singular vectors of a weight after fine-tuning is matched before.

    `max_j |<u_i, u0_j>|` over all left singular vectors `u0` of the base; below `epsilon`, `u_i` is an intruder
    (Algorithm 1 of the paper).

    The principal vectors of the base are compared first. A vector that one of them matches to `epsilon`, or of which
    less than `epsilon` is left outside their span, is decided by them; only for others is the whole decomposition
    made, which costs some ten times as much.

    Args:
        before: the base's weight.
        after: the fine-tuned one.
        top: `k`, cut to the smaller side.
        epsilon: the limit that has to be decided.

    Returns:
        The cosines (k,), in the order of the singular values: exact where the whole decomposition was made, else
        exact or a lower bound that decides as the exact one does.
    """
    small = min(before.shape)
    top = min(top, small)
    U = truncated_svd(after, top, "principal").U.double()
    tried = truncated_svd(before, min(_TRIED * top, small), "principal").U.double()
    cosines = (tried.mT @ U).abs()
    best = cosines.amax(dim=0)
    outside = (1 - cosines.square().sum(dim=0)).clamp_min(0).sqrt()
    if bool(((best >= epsilon) | (outside < epsilon)).all()):
        return best
    whole = torch.linalg.svd(before.double(), full_matrices=False).U
    return (whole.mT @ U).abs().amax(dim=0)
