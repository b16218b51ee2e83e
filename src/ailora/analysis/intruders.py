"""Intruder dimensions (arXiv 2410.21228): large singular vectors of a fine-tuned weight without a match in the base."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ailora.spectral import truncated_svd

#: Principal vectors of the base to compare for each vector that may be an intruder, before all are computed.
_CANDIDATES_PER_VECTOR = 4


class LeftSingularVectors:
    """Left singular vectors of a base weight, in float64, computed on first use and kept for all models.

    Args:
        weight: weight (out, in) of the base.
        top: number of vectors of a fine-tuned weight to compare with them, at most min(out, in).
    """

    def __init__(self, weight: Float[Tensor, "out in_"], top: int) -> None:
        self._weight = weight
        self.top = min(top, *weight.shape)

    @cached_property
    def principal(self) -> Float[Tensor, "out k"]:
        """The `4 top` vectors of the largest singular values."""
        rank = min(_CANDIDATES_PER_VECTOR * self.top, *self._weight.shape)
        return truncated_svd(self._weight, rank, "principal").U.double()

    @cached_property
    def all(self) -> Float[Tensor, "out small"]:
        """The vectors of all min(out, in) singular values."""
        return torch.linalg.svd(self._weight.double(), full_matrices=False).U


def nearest_cosines(
    base_vectors: LeftSingularVectors, weight: Float[Tensor, "out in_"], epsilon: float
) -> Float[Tensor, " top"]:
    """Compute the largest cosine of each of the `top` left singular vectors of a fine-tuned weight with the base's.

    The cosine is `max_j |<u_i, u0_j>|` over all left singular vectors `u0` of the base; below `epsilon`, `u_i` is an
    intruder (Algorithm 1 of arXiv 2410.21228).

    Args:
        base_vectors: left singular vectors of the base weight.
        weight: the fine-tuned weight (out, in).
        epsilon: the cosine below which a vector is an intruder.

    Returns:
        The cosines, in the order of the singular values: exact, or a lower bound on the same side of `epsilon`.
    """
    U = truncated_svd(weight, base_vectors.top, "principal").U.double()
    cosines = (base_vectors.principal.mT @ U).abs()
    best = cosines.amax(dim=0)
    outside = (1 - cosines.square().sum(dim=0)).clamp_min(0).sqrt()
    # A match among the principal vectors, or too little left outside their span for another match, decides a vector.
    # The whole decomposition, which costs some ten times as much, is made only for others.
    if bool(((best >= epsilon) | (outside < epsilon)).all()):
        return best
    return (base_vectors.all.mT @ U).abs().amax(dim=0)
