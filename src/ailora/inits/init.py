"""Interface of inits, the rules for the initial factors of a projection."""

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
        floored: Number of directions with a negligible singular value, clamped to a small value, (...,).
    """

    A: Float[Tensor, "*batch rank in_"]
    B: Float[Tensor, "*batch out rank"]
    floored: Int[Tensor, "*batch"] = field(default_factory=lambda: torch.tensor(0))


class Init(ABC):
    """Rule for the initial factors of a projection, given its weight."""

    #: Whether `B A` differs from zero at the start. Such an adapter needs an anchor.
    anchored: ClassVar[bool]

    @abstractmethod
    def factors(
        self, weight: Float[Tensor, "*batch out in_"], rank: int, *, scaling: float, generator: torch.Generator
    ) -> Factors:
        """Compute the factors `A` (rank, in) and `B` (out, rank), in float32 or, for a float64 weight, float64.

        Args:
            weight: Base weight (out, in), floating; inits with an anchor accept batches (..., out, in) too.
            rank: Rank of the factors, 1 <= rank <= min(out, in).
            scaling: Positive `s` in `dW = s B A`.
            generator: Only source of random numbers, on the CPU.

        Returns:
            The factors, on the device of the weight.

        Raises:
            InputError: The weight has no decomposition (NaN, infinite), or the rank is out of range.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, str]:
        """Return the init as plain data, the input of `parse_init`."""
