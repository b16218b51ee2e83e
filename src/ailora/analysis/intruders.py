"""Intruder dimensions (arXiv 2410.21228): large singular vectors of a fine-tuned weight without a match in the base."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from ailora.spectral import truncated_svd

#: Number of principal vectors of the base for each tested vector. This number suffices in most cases. In other cases,
#: all vectors are computed.
_CANDIDATES_PER_VECTOR = 4


class LeftSingularVectors:
    """Left singular vectors of a base weight, in float64, computed on first use and kept for all models.

    Args:
        weight: Weight (out, in) of the base.
        top: Number of vectors to test in each fine-tuned weight, limited to min(out, in).
    """

    def __init__(self, weight: Float[Tensor, "out in_"], top: int) -> None:
        self._weight = weight
        self.top = min(top, *weight.shape)

    @cached_property
    def principal(self) -> Float[Tensor, "out k"]:
        """Vectors (out, k) of the k largest singular values, k = min(4 top, out, in)."""
        rank = min(_CANDIDATES_PER_VECTOR * self.top, *self._weight.shape)
        return truncated_svd(self._weight, rank, "principal").U.double()

    @cached_property
    def all(self) -> Float[Tensor, "out small"]:
        """Vectors of all min(out, in) singular values."""
        return torch.linalg.svd(self._weight.double(), full_matrices=False).U


def nearest_cosines(
    base_vectors: LeftSingularVectors, weight: Float[Tensor, "out in_"], epsilon: float
) -> Float[Tensor, " top"]:
    """Compare the `top` left singular vectors of a fine-tuned weight with the left singular vectors of the base.

    The cosine of a vector `u_i` is `max_j |<u_i, u0_j>|` over all left singular vectors `u0` of the base. A vector with
    a cosine below `epsilon` is an intruder (Algorithm 1 of arXiv 2410.21228).

    Args:
        base_vectors: Left singular vectors of the base weight.
        weight: Fine-tuned weight (out, in).
        epsilon: Cosine below which a vector is an intruder.

    Returns:
        Cosine of each vector, in the order of the singular values. Some cosines are lower bounds that are on the same
        side of `epsilon` as the exact cosine.
    """
    U = truncated_svd(weight, base_vectors.top, "principal").U.double()
    cosines = (base_vectors.principal.mT @ U).abs()
    best = cosines.amax(dim=0)
    residual_norms = (1 - cosines.square().sum(dim=0)).clamp_min(0).sqrt()
    # A vector is no intruder if it matches a principal vector. If it matches none, it is an intruder if its part
    # outside the span of the principal vectors is too small to match any other vector. The full decomposition takes
    # about ten times as long, and is computed only if a vector is in neither of these cases.
    is_decided = (best >= epsilon) | (residual_norms < epsilon)
    if bool(is_decided.all()):
        return best
    return (base_vectors.all.mT @ U).abs().amax(dim=0)
