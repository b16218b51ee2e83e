"""Candidates of a search: learning rates spread evenly over the conditions (policy, roles and rank)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ailora.studies.trial import Condition

#: Factors of ten from the center of an automatic range to each end.
AUTO_DECADES = 1.5


@dataclass(frozen=True)
class RateSpan:
    """Range of learning rates on a logarithmic axis.

    Attributes:
        center: Geometric mean of the ends.
        decades: Factors of ten from the center to each end.
    """

    center: float
    decades: float = AUTO_DECADES

    def choose(self, position: float, taken: Collection[float]) -> float | None:
        """Choose the rate at a position, rounded to three digits.

        Args:
            position: Position in the range, from 0 (the low end) to 1 (the high end).
            taken: Rates that were chosen before.

        Returns:
            The rate, or None if it is taken.
        """
        # Rounded before the comparison: users retype rates, and rates that look equal must be the same candidate.
        rate = float(f"{self.center * 10 ** (self.decades * (2 * position - 1)):.3g}")
        return None if rate in taken else rate


@dataclass(frozen=True)
class RateValues:
    """Exact learning rates.

    Attributes:
        values: The rates, ascending.
    """

    values: tuple[float, ...]

    def choose(self, position: float, taken: Collection[float]) -> float | None:
        """Choose the rate nearest to a position.

        Args:
            position: Position in the list of rates, from 0 (the smallest) to 1 (the largest).
            taken: Rates that were chosen before.

        Returns:
            The nearest rate that is not taken, or None if all are taken.
        """
        target = position * (len(self.values) - 1)
        free = [index for index, rate in enumerate(self.values) if rate not in taken]
        return self.values[min(free, key=lambda index: abs(index - target))] if free else None


@dataclass(frozen=True)
class Candidate:
    """Condition and learning rate that a search tries.

    Attributes:
        number: Position in the order of the search; of candidates with equal scores, the smaller number is better.
        condition: Policy, roles and rank.
        learning_rate: Learning rate of the optimizer.
    """

    number: int
    condition: Condition
    learning_rate: float


def spread_candidates(rates: Mapping[Condition, RateSpan | RateValues], count: int) -> list[Candidate]:
    """Spread learning rates evenly over all conditions together, and within each condition.

    In each round, every condition gets at most one rate. Within a round, the positions of the rates follow the van der
    Corput sequence in base 3. From round to round, the sequence in base 2 shifts all positions. The first candidate is
    at the center of its range. A larger count appends candidates to those of a smaller count.

    Args:
        rates: Condition -> its rates.
        count: Number of candidates.

    Returns:
        The candidates by number, without duplicates; fewer than `count` if no other rates are left.
    """
    candidates: list[Candidate] = []
    taken: dict[Condition, set[float]] = {condition: set() for condition in rates}
    for round_index in range(count):
        for condition_index, (condition, rate_range) in enumerate(rates.items()):
            position = (0.5 + _radical_inverse(round_index, 2) + _radical_inverse(condition_index, 3)) % 1
            rate = rate_range.choose(position, taken[condition])
            if rate is not None and len(candidates) < count:
                taken[condition].add(rate)
                candidates.append(Candidate(len(candidates), condition, rate))
    return candidates


def _radical_inverse(number: int, base: int) -> float:
    """Mirror the digits of a number at the radix point: 1, 2, 3 in base 2 give 0.5, 0.25, 0.75."""
    value, scale = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        scale /= base
        value += digit * scale
    return value
