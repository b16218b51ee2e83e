"""Learning rates: which of them a method is tried at, at which seeds, and which one is its best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ailora.studies.curves import peak
from ailora.studies.schema import RateConfig

#: How far a range is extended beyond each of its ends.
MOST_DECADES = 2


@dataclass(frozen=True)
class Rates:
    """The learning rates that are tried.

    Attributes:
        initial: those that are tried first, in ascending order.
        per_decade: how many there are to a factor of ten; None: the rates are exact and no others are tried.
    """

    initial: tuple[float, ...]
    per_decade: int | None = None

    @classmethod
    def of(cls, config: RateConfig) -> Rates:
        """What a study file says."""
        if config.values is not None:
            return cls(tuple(sorted(config.values)))
        assert config.from_ is not None
        assert config.to is not None
        # A hundredth of a step: 1e-5 to 1e-2 has 13 rates, whatever the logarithms' last digits.
        steps = math.floor(math.log10(config.to / config.from_) * config.per_decade + 0.01)
        return cls(tuple(_step(config.from_, k, config.per_decade) for k in range(steps + 1)), config.per_decade)

    def neighbours(self, rate: float, tried: Iterable[float]) -> list[float]:
        """The next rate below and above one; at an edge of the range new ones, within `MOST_DECADES` of its ends.

        Args:
            rate: one of `tried`.
            tried: the rates so far.
        """
        ordered = sorted(set(tried) | set(self.initial))
        place = ordered.index(rate)
        below = ordered[place - 1] if place else self._beyond(rate, -1)
        above = ordered[place + 1] if place + 1 < len(ordered) else self._beyond(rate, 1)
        return [found for found in (below, above) if found is not None]

    def _beyond(self, rate: float, direction: int) -> float | None:
        if self.per_decade is None:
            return None
        # Counted from the range's end, so that repeated rounding does not drift.
        end = self.initial[0] if direction < 0 else self.initial[-1]
        steps = round(abs(math.log10(rate / end)) * self.per_decade) + 1
        return None if steps > MOST_DECADES * self.per_decade else _step(end, direction * steps, self.per_decade)


@dataclass(frozen=True)
class Schedule:
    """What is to be run to find the best rate of one method, and then to measure it there.

    Attributes:
        rates: the rates.
        seeds: the first one finds the best rate, all of them confirm it.
        extra_seeds: run at the best rate alone.
        everywhere: whether all seeds run at all rates.
    """

    rates: Rates
    seeds: Sequence[int]
    extra_seeds: Sequence[int] = ()
    everywhere: bool = False

    def plan(self, scores: Mapping[tuple[float, int], float]) -> Progress:
        """What is wanted, as far as it is known.

        Args:
            scores: (rate, seed) -> score of what has ended, larger is better; NaN: it failed.
        """
        tried = list(self.rates.initial)
        first = self.seeds[0]
        wanted = dict.fromkeys((rate, seed) for rate in tried for seed in (self.seeds if self.everywhere else [first]))
        if not wanted.keys() <= scores.keys():
            return Progress(list(wanted))
        best = _best(scores, tried, self.seeds if self.everywhere else [first])
        while best is not None:
            near = self.rates.neighbours(best, tried)
            tried = sorted({*tried, *near})
            # With the first seed alone: whether the range goes on in this direction.
            sweep = [(rate, first) for rate in near]
            wanted |= dict.fromkeys(sweep)
            if not wanted.keys() <= scores.keys():
                return Progress(list(wanted))
            if (further := _best(scores, tried, [first])) != best and not self._measured(scores, best):
                best = further
                continue
            wanted |= dict.fromkeys((rate, seed) for rate in [best, *near] for seed in self.seeds)
            if not wanted.keys() <= scores.keys():
                return Progress(list(wanted))
            complete = [rate for rate in tried if self._measured(scores, rate)]
            if (chosen := _best(scores, complete, self.seeds)) in (best, None):
                break
            best = chosen
        if best is None:
            return Progress(list(wanted), ended=True)
        wanted |= dict.fromkeys((best, seed) for seed in self.extra_seeds)
        return Progress(list(wanted), best, ended=wanted.keys() <= scores.keys())

    def _measured(self, scores: Mapping[tuple[float, int], float], rate: float) -> bool:
        return all((rate, seed) in scores for seed in self.seeds)


@dataclass(frozen=True)
class Progress:
    """How far the search for a method's best rate has come.

    Attributes:
        wanted: (rate, seed) of all runs that are known to be needed, those that have ended included.
        best: the best rate; None: not known yet, or every run failed.
        ended: whether nothing is left to run.
    """

    wanted: list[tuple[float, int]]
    best: float | None = None
    ended: bool = False


def _best(scores: Mapping[tuple[float, int], float], rates: Iterable[float], seeds: Sequence[int]) -> float | None:
    """The rate with the best mean over seeds; a failed run makes its rate NaN. None: all of them failed."""
    means = {rate: math.fsum(scores[rate, seed] for seed in seeds) / len(seeds) for rate in rates}
    if all(map(math.isnan, means.values())):
        return None
    return peak(means, larger_is_better=True)


def _step(rate: float, steps: int, per_decade: int) -> float:
    """So many steps of a geometric range from a rate, with six digits."""
    return float(f"{rate * 10 ** (steps / per_decade):.6g}")
