"""Intruder dimensions (arXiv 2410.21228): large singular vectors of a fine-tuned weight that the base does not have."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ailora.spectral import truncated_svd

#: Singular vectors of the base to try for each one that may be an intruder, before all are computed.
_CANDIDATES_PER_VECTOR = 4


class LeftSingularVectors:
    """Left singular vectors of a base weight, in float64, computed when first needed and kept for all models.

    Args:
        weight: the base's (out, in).
        top: how many vectors of a fine-tuned weight will be compared with them, cut to the smaller side.
    """

    def __init__(self, weight: Float[Tensor, "out in_"], top: int) -> None:
        self._weight = weight
        self.top = min(top, *weight.shape)

    @cached_property
    def principal(self) -> Float[Tensor, "out k"]:
        """The first `4 top`."""
        rank = min(_CANDIDATES_PER_VECTOR * self.top, *self._weight.shape)
        return truncated_svd(self._weight, rank, "principal").U.double()

    @cached_property
    def all(self) -> Float[Tensor, "out small"]:
        """All of them."""
        return torch.linalg.svd(self._weight.double(), full_matrices=False).U


def nearest_cosines(
    before: LeftSingularVectors, after: Float[Tensor, "out in_"], epsilon: float
) -> Float[Tensor, " top"]:
    """Compute how well the base matches each of the `top` left singular vectors of a fine-tuned weight.

    That is `max_j |<u_i, u0_j>|` over all left singular vectors `u0` of the base; below `epsilon`, `u_i` is an
    intruder (Algorithm 1 of the paper).

    The principal vectors of the base are compared first. A vector that one of them matches to `epsilon`, or of which
    less than `epsilon` is left outside their span, is decided by them; only for others is the whole decomposition
    made, which costs some ten times as much.

    Args:
        before: those of the base's weight.
        after: the fine-tuned weight.
        epsilon: the limit to decide.

    Returns:
        The cosines, in the order of the singular values: exact where the whole decomposition was made, else exact or a
        lower bound that decides as the exact one does.
    """
    U = truncated_svd(after, before.top, "principal").U.double()
    cosines = (before.principal.mT @ U).abs()
    best = cosines.amax(dim=0)
    outside = (1 - cosines.square().sum(dim=0)).clamp_min(0).sqrt()
    if bool(((best >= epsilon) | (outside < epsilon)).all()):
        return best
    return (before.all.mT @ U).abs().amax(dim=0)
