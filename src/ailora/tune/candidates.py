"""Candidates of a search: learning rates spread evenly over choices of rank, roles and policy."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ailora.studies.trial import Condition

#: Factors of ten to each side of a suggested rate.
AUTO_DECADES = 1.5


@dataclass(frozen=True)
class RateSpan:
    """Span of learning rates of a choice, on the logarithmic axis.

    Attributes:
        center: geometric mean of the ends.
        decades: factors of ten from the center to each end.
    """

    center: float
    decades: float = AUTO_DECADES

    def choose(self, place: float, taken: Collection[float]) -> float | None:
        """Choose the rate at a place between 0 (the low end) and 1 (the high end), with three digits.

        Returns None if that rate is taken.
        """
        rate = float(f"{self.center * 10 ** (self.decades * (2 * place - 1)):.3g}")
        return None if rate in taken else rate


@dataclass(frozen=True)
class RateValues:
    """Exact learning rates of a choice.

    Attributes:
        values: the rates, ascending.
    """

    values: tuple[float, ...]

    def choose(self, place: float, taken: Collection[float]) -> float | None:
        """Choose the rate nearest to a place between 0 (the least) and 1 (the largest) that is not taken.

        Returns None if all are taken.
        """
        target = place * (len(self.values) - 1)
        free = [index for index, rate in enumerate(self.values) if rate not in taken]
        return self.values[min(free, key=lambda index: abs(index - target))] if free else None


@dataclass(frozen=True)
class Candidate:
    """Settings to try.

    Attributes:
        number: number in the order of the search, which breaks ties.
        condition: policy, roles and rank.
        learning_rate: of the optimizer.
    """

    number: int
    condition: Condition
    learning_rate: float


def spread_candidates(rates: Mapping[Condition, RateSpan | RateValues], count: int) -> list[Candidate]:
    """Choose candidates whose rates fill the spans evenly, over all choices together and within each.

    The first candidates are the same for every count. Choices take turns. Places of rates are those of a Halton
    sequence: base 3 over the choices of a turn, shifted in base 2 from turn to turn. The first is the center.

    Args:
        rates: choice -> its rates.
        count: number of candidates.

    Returns:
        The candidates by number, each different; fewer than `count` if there are fewer.
    """
    candidates: list[Candidate] = []
    taken: dict[Condition, set[float]] = {condition: set() for condition in rates}
    for turn in range(count):
        for index, (condition, choices) in enumerate(rates.items()):
            place = (0.5 + _radical_inverse(turn, 2) + _radical_inverse(index, 3)) % 1
            rate = choices.choose(place, taken[condition])
            if rate is not None and len(candidates) < count:
                taken[condition].add(rate)
                candidates.append(Candidate(len(candidates), condition, rate))
    return candidates


def _radical_inverse(number: int, base: int) -> float:
    """Return the digits of a number mirrored at the point: 1, 2, 3 in base 2 give 0.5, 0.25, 0.75."""
    value, scale = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        scale /= base
        value += digit * scale
    return value
