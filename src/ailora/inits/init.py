"""Interface of inits, which compute the initial factors of a projection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """Initial factors of an adapter, or of a batch of adapters.

    Attributes:
        A: Factor (..., rank, in).
        B: Factor (..., out, rank).
        floored: Number of negligible singular values that were raised to a lower bound, of shape (...,).
    """

    A: Float[Tensor, "*batch rank in_"]
    B: Float[Tensor, "*batch out rank"]
    floored: Int[Tensor, "*batch"] = field(default_factory=lambda: torch.tensor(0, device="cpu"))


class Init(ABC):
    """Rule for the initial factors of a projection, given its weight."""

    #: Whether `B A` differs from zero at the start. If so, the adapter needs an anchor: a copy of the initial factors,
    #: whose product is subtracted so that the adapted model starts equal to the base.
    needs_anchor: ClassVar[bool]

    @abstractmethod
    def factors(
        self, weight: Float[Tensor, "*batch out in_"], rank: int, *, scaling: float, generator: torch.Generator
    ) -> Factors:
        """Compute the initial factors `A` (rank, in) and `B` (out, rank).

        Args:
            weight: Base weight (out, in) of a floating dtype. Inits with an anchor also accept batches (..., out, in).
            rank: Rank of the factors, 1 <= rank <= min(out, in).
            scaling: Positive factor `s` of the product `s B A`, which the adapter adds to the weight.
            generator: Source of all random numbers, on the CPU.

        Returns:
            Factors on the weight's device, in float64 for a float64 weight and in float32 for all others.

        Raises:
            InputError: The init decomposes the weight, and the weight has NaN or infinite entries, or too few
                rows or columns for the rank.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, str]:
        """Return the init as plain data, the input of `parse_init`."""
