"""Inits: how the factors of one projection start."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ailora.errors import parse_choice, unknown_name
from ailora.spectral import Band, cached_svd

#: Norm of a row of LoRA's Kaiming-uniform A: entries are uniform in +-1/sqrt(in), so the row norm tends to 1/sqrt(3).
KAIMING_ROW_NORM = 1 / math.sqrt(3)

#: Least singular value that factors are made of, relative to the root mean square of the weight's singular values.
#: Where `A` and `B` of a direction are both zero, both gradients vanish and it never trains.
_LEAST_VALUE = 1e-4


@dataclass(frozen=True)
class Factors:
    """The start of one adapter.

    Attributes:
        A: (..., rank, in).
        B: (..., out, rank).
        floored: how many of its directions got a size in place of a negligible singular value, (...,).
    """

    A: Float[Tensor, "*batch rank in_"]
    B: Float[Tensor, "*batch out rank"]
    floored: Int[Tensor, "*batch"] = field(default_factory=lambda: torch.tensor(0))


class Init(ABC):
    """How the factors of one projection start from its weight."""

    #: Whether `B A` differs from zero at the start, so that the adapter needs an anchor.
    anchored: ClassVar[bool]

    @abstractmethod
    def factors(
        self, weight: Float[Tensor, "*batch out in_"], rank: int, *, scaling: float, generator: torch.Generator
    ) -> Factors:
        """The factors `A` (rank, in) and `B` (out, rank), in float32 or, for a float64 weight, float64.

        Args:
            weight: the base weight, floating, (out, in); inits with an anchor take batches (..., out, in) too.
            rank: 1 <= rank <= min(out, in).
            scaling: the `s` in `dW = s B A`, positive.
            generator: the only source of random numbers, on the CPU.

        Raises:
            InputError: the weight has no decomposition (NaN, infinite), or the rank is out of range.
        """

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """The init as plain data; `parse_init` reads it back."""


class Size(StrEnum):
    """How long the factors of a spectral init are.

    `singular` splits the singular values evenly (the paper's equation); `unit` gives every direction the row norm of
    plain LoRA's A, so that the start tolerates plain LoRA's learning rate.
    """

    SINGULAR = "singular"
    UNIT = "unit"


@dataclass(frozen=True)
class Spectral(Init):
    """Start from one band of the weight's own spectrum.

    With the band's triplets `U, S, Vh` and size `singular`: `B = U (S/s)^1/2`, `A = (S/s)^1/2 Vh`, so that `s B A` is
    the part of W in the band (AILoRA, arXiv 2510.08034; PiSSA, arXiv 2404.02948; MiLoRA, arXiv 2406.09044). Negligible
    singular values are replaced by a small one (`Factors.floored` counts them): in the anchored form any start is
    exact, and in the residual form what is added is subtracted.
    """

    band: Band
    size: Size = Size.SINGULAR
    anchored: ClassVar[bool] = True

    def factors(
        self, weight: Float[Tensor, "*batch out in_"], rank: int, *, scaling: float, generator: torch.Generator
    ) -> Factors:
        triplets = cached_svd(weight, rank, self.band)
        if self.size is Size.UNIT:
            return Factors(A=triplets.Vh * KAIMING_ROW_NORM, B=triplets.U * KAIMING_ROW_NORM)
        size = torch.linalg.vector_norm(weight.to(triplets.S.dtype), dim=(-2, -1), keepdim=True)[..., 0]
        least = _LEAST_VALUE * size / math.sqrt(min(weight.shape[-2:]))
        # A weight that is zero throughout gives no scale: take plain LoRA's.
        least = torch.where(least > 0, least, KAIMING_ROW_NORM**2 * scaling)
        root = (triplets.S.clamp_min(least) / scaling).sqrt()
        floored = (least > triplets.S).sum(dim=-1)
        return Factors(A=triplets.Vh * root[..., :, None], B=triplets.U * root[..., None, :], floored=floored)

    def describe(self) -> dict[str, str]:
        return {"init": self.band.value, "size": self.size.value}


@dataclass(frozen=True)
class Kaiming(Init):
    """Plain LoRA (arXiv 2106.09685): A uniform in +-1/sqrt(in) (Kaiming with a = sqrt(5), as PEFT), B zero."""

    anchored: ClassVar[bool] = False

    def factors(
        self, weight: Float[Tensor, "*batch out in_"], rank: int, *, scaling: float, generator: torch.Generator
    ) -> Factors:
        out, in_ = weight.shape[-2:]
        dtype = torch.promote_types(weight.dtype, torch.float32)
        A = (torch.rand(rank, in_, generator=generator, dtype=dtype) * 2 - 1) / math.sqrt(in_)
        return Factors(A=A.to(weight.device), B=torch.zeros(out, rank, dtype=dtype, device=weight.device))

    def describe(self) -> dict[str, str]:
        return {"init": "lora"}


@dataclass(frozen=True)
class _Word:
    """One word of the configuration language and the init that it stands for."""

    init: Init | None
    options: frozenset[str] = field(default_factory=frozenset)


WORDS: dict[str, _Word] = {
    "principal": _Word(Spectral(Band.PRINCIPAL), frozenset({"size"})),
    "minor": _Word(Spectral(Band.MINOR), frozenset({"size"})),
    "lora": _Word(Kaiming()),
    "none": _Word(None),
}


def parse_init(spec: Init | str | Mapping[str, str] | None) -> Init | None:
    """The init that a word (`principal`, `minor`, `lora`, `none`) or a mapping (`{init: minor, size: unit}`) names.

    Returns:
        The init; None for `none`: such a projection stays frozen.

    Raises:
        InputError: unknown word, option or size.
    """
    if spec is None or isinstance(spec, Init):
        return spec
    fields = dict(spec) if isinstance(spec, Mapping) else {"init": spec}
    name = fields.pop("init", None)
    if not isinstance(name, str) or name not in WORDS:
        raise unknown_name("init", name, WORDS)
    word = WORDS[name]
    for option in fields:
        if option not in word.options:
            raise unknown_name(f"option of init {name!r}", option, sorted(word.options))
    if isinstance(word.init, Spectral) and "size" in fields:
        return Spectral(word.init.band, parse_choice("size", fields["size"], Size))
    return word.init
