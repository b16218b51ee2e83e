"""Learning rates: which of them a method is tried at, at which seeds, and which one is its best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ailora.studies.lr_sweep import peak
from ailora.studies.study_config import RateConfig

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

    @property
    def reachable(self) -> list[float]:
        """All rates that may be tried: a range goes on for `MOST_DECADES` beyond each of its ends."""
        if self.per_decade is None:
            return list(self.initial)
        most = MOST_DECADES * self.per_decade
        below = [_step(self.initial[0], -k, self.per_decade) for k in range(most, 0, -1)]
        above = [_step(self.initial[-1], k, self.per_decade) for k in range(1, most + 1)]
        return [*below, *self.initial, *above]

    def neighbours(self, rate: float) -> list[float]:
        """The next rate below and above one, as far as they may be tried."""
        rates = self.reachable
        place = rates.index(rate)
        return [*rates[max(0, place - 1) : place], *rates[place + 1 : place + 2]]


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
        first = self.seeds[:1]
        initial = self.rates.initial
        tried = {rate for rate in self.rates.reachable if rate in initial or (rate, first[0]) in scores}
        wanted = _cells(sorted(tried), first) | _cells(initial, self.seeds if self.everywhere else [])
        if not wanted.keys() <= scores.keys():
            return Progress(list(wanted))
        while (best := self._promising(scores, tried)) is not None:
            near = self.rates.neighbours(best)
            tried |= {*near}
            # One seed tells whether the range goes on in this direction, all of them which rate is the best.
            for seeds in (first, self.seeds):
                # A rate at which a run failed is out: its other seeds would only cost.
                sound = [r for r in (best, *near) if not any(math.isnan(scores.get((r, s), 0.0)) for s in self.seeds)]
                wanted |= _cells(sound, seeds)
                if not wanted.keys() <= scores.keys():
                    return Progress(list(wanted))
                if self._promising(scores, tried) != best:
                    break
            else:
                break
        if best is not None:
            wanted |= _cells([best], self.extra_seeds)
        return Progress(list(wanted), best, ended=wanted.keys() <= scores.keys())

    def _promising(self, scores: Mapping[tuple[float, int], float], tried: Iterable[float]) -> float | None:
        """The rate with the best mean over all seeds, or while no rate has them all, with the best first seed.

        A rate with a failed run is out. None: all are.
        """
        found = {rate: [scores[rate, seed] for seed in self.seeds if (rate, seed) in scores] for rate in tried}
        sound = {rate: own for rate, own in found.items() if not any(map(math.isnan, own))}
        measured = {rate: math.fsum(own) / len(own) for rate, own in sound.items() if len(own) == len(self.seeds)}
        means = measured or {rate: own[0] for rate, own in sound.items()}
        return peak(means, larger_is_better=True) if means else None


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


def _cells(rates: Iterable[float], seeds: Iterable[int]) -> dict[tuple[float, int], None]:
    """All pairs, in order."""
    return dict.fromkeys(itertools.product(rates, list(seeds)))


def _step(rate: float, steps: int, per_decade: int) -> float:
    """So many steps of a geometric range from a rate, with six digits."""
    return float(f"{rate * 10 ** (steps / per_decade):.6g}")
