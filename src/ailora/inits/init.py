"""The interface of inits: how the factors of one projection start."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """The initial factors of one adapter.

    Attributes:
        A: (..., rank, in).
        B: (..., out, rank).
        floored: number of directions whose negligible singular value was clamped to a small one, (...,).
    """

    A: Float[Tensor, "*batch rank in_"]
    B: Float[Tensor, "*batch out rank"]
    floored: Int[Tensor, "*batch"] = field(default_factory=lambda: torch.tensor(0))


class Init(ABC):
    """A rule that makes the initial factors of one projection from its weight."""

    #: Whether `B A` differs from zero at the start, so that the adapter needs an anchor.
    anchored: ClassVar[bool]

    @abstractmethod
    def factors(
        self, weight: Float[Tensor, "*batch out in_"], rank: int, *, scaling: float, generator: torch.Generator
    ) -> Factors:
        """Compute the factors `A` (rank, in) and `B` (out, rank), in float32 or, for a float64 weight, float64.

        Args:
            weight: the base weight, floating, (out, in); inits with an anchor take batches (..., out, in) too.
            rank: 1 <= rank <= min(out, in).
            scaling: the `s` in `dW = s B A`, positive.
            generator: the only source of random numbers, on the CPU.

        Returns:
            The factors, on the device of the weight.

        Raises:
            InputError: the weight has no decomposition (NaN, infinite), or the rank is out of range.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, str]:
        """Return the init as plain data; `parse_init` reads it back."""
