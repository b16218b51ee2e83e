"""Validated settings of an analysis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ailora.errors import InputError, unknown_name
from ailora.roles import Role

#: Largest seed that scikit-learn accepts.
_MAX_SEED = 2**32 - 1

PointKind = Literal["auto", "layers", "heads"]


@dataclass(frozen=True)
class AnalysisSettings:
    """Settings of an analysis. See the arguments of `ailora.analysis.analyze`.

    Raises:
        InputError: A setting is out of range.
    """

    roles: tuple[Role, ...]
    rank: int
    points: PointKind
    perplexity: float | None
    seeds: tuple[int, ...]
    top: int
    epsilon: float
    directions: bool

    def __post_init__(self) -> None:
        if self.points not in get_args(PointKind):
            raise unknown_name("kind of points", self.points, get_args(PointKind))
        for name, is_valid, requirement in (
            ("roles", bool(self.roles), f"at least one of {', '.join(role.value for role in Role)}"),
            ("rank", _is_whole(self.rank, 1), "a whole number of at least 1"),
            ("top", _is_whole(self.top, 1), "a whole number of at least 1"),
            ("perplexity", self.perplexity is None or 0 < self.perplexity < math.inf, "above 0 and finite"),
            ("seeds", _are_seeds(self.seeds), f"different whole numbers from 0 to {_MAX_SEED}"),
            ("epsilon", 0 < self.epsilon <= 1, "above 0 and at most 1"),
        ):
            if not is_valid:
                raise InputError(f"{name} must be {requirement}, got {getattr(self, name)!r}")


def _are_seeds(seeds: tuple[object, ...]) -> bool:
    # Equal seeds give the same t-SNE embedding, so the agreement between seeds would be 1 regardless of the data.
    return bool(seeds) and all(_is_whole(seed, 0, _MAX_SEED) for seed in seeds) and len(set(seeds)) == len(seeds)


def _is_whole(value: object, minimum: int, maximum: float = math.inf) -> bool:
    # Python's `True` is an int, and would pass as rank 1.
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum
