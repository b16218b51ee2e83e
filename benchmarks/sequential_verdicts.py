"""How often are verdicts wrong, and how many seeds do they take? Simulated studies, judged until decided.

    python benchmarks/sequential_verdicts.py             # or with --page: only the table

A study has a baseline, one method or four, and five learning rates. A run's score is the true mean of its method and
rate, an effect of the seed that all methods share, and noise, of which half of the variance is common to its scores on
validation and test. The rate is the best mean of three seeds on validation; verdicts are on the test scores at looks of
3, 5, 8, 12 and 20 seeds. The truth of a comparison is the difference of the true means at the chosen rates. Figures go
to `results/sequential_verdicts.json`, their table to `docs/studies.md`.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from doc_pages import DOCS, replace_between
from machine import RESULTS, write_results
from scipy import stats

from ailora.studies.sequential_tests import LookMoments, LookSchedule
from ailora.studies.statistics import holm_adjusted
from ailora.studies.verdicts import ALPHA

MARGIN = 0.01
LOOKS = LookSchedule.between(3, 20)
N_RATES = 5
#: Loss of the true mean at a rate, by its distance from the best one: all rates equally good, or one peak.
CURVES = {"flat": np.zeros(N_RATES), "peak": -0.004 * np.abs(np.arange(N_RATES) - 2)}
#: Standard deviations of the paired differences. On all-mpnet-base-v2, inits have 0.002 to 0.006 on SST-2, and 0.017 to
#: 0.027 on CoLA, unless runs collapse.
SPREADS = (0.005, 0.01, 0.02)
#: True differences of every method to the baseline, in margins.
DIFFERENCES = {"none": 0.0, "at the margin": 1.0, "beyond": 1.5}


@dataclass(frozen=True)
class Decisions:
    """Decisions of simulated studies, each at the look that ended the comparison.

    Attributes:
        sign: 1 for a larger score, -1 for a smaller one, 0 for no difference shown, (studies, methods).
        equivalent: Whether equivalence is shown, (studies, methods).
        look: Index of the last look, (studies, methods).
    """

    sign: np.ndarray
    equivalent: np.ndarray
    look: np.ndarray

    @property
    def is_decided(self) -> np.ndarray:
        """Whether anything is shown, (studies, methods)."""
        return (self.sign != 0) | self.equivalent


def decide(differences: np.ndarray, schedule: LookSchedule = LOOKS, margin: float = MARGIN) -> Decisions:
    """Judge studies at every look, as `plan_looks` does with one of them.

    Args:
        differences: Differences to the baseline by seed, (studies, methods, seeds).
        schedule: The looks.
        margin: Largest difference of equivalent methods.
    """
    moments = LookMoments.from_differences(differences, schedule)
    p_values = np.stack([moments.difference_p(), moments.equivalence_p(margin)])
    statistics = moments.statistics()
    look = np.zeros(differences.shape[:2], int)
    active = np.ones(differences.shape[:2], bool)
    for k in range(len(schedule.counts)):
        look[active] = k
        current = np.take_along_axis(p_values, look[None, ..., None], axis=-1)[..., 0]
        shown = holm_adjusted(current) < ALPHA
        active &= ~shown.any(axis=0)
    reached = np.where(np.arange(len(schedule.counts)) <= look[..., None], np.abs(statistics), -1)
    largest = np.take_along_axis(statistics, reached.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    return Decisions(np.where(shown[0], np.sign(largest), 0).astype(int), shown[1], look)


def simulate(
    rng: np.random.Generator, n_studies: int, gains: np.ndarray, curve: np.ndarray, spread: float
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate studies with the selection of rates.

    Args:
        rng: Source of the noise.
        n_studies: Number of studies.
        gains: True differences to the baseline, (methods,).
        curve: True means over the rates, (rates,).
        spread: Standard deviation of paired differences at a rate.

    Returns:
        Differences on test by seed, (studies, methods, seeds), and true differences, (studies, methods).
    """
    n_methods, sd = len(gains) + 1, spread / np.sqrt(2)
    means = np.concatenate([[0.0], gains])[:, None] + curve

    def noise(n_seeds: int, *rates: int) -> np.ndarray:
        return rng.normal(0, sd * np.sqrt(0.5), (n_studies, n_methods, *rates, n_seeds))

    first = LOOKS.counts[0]
    common = noise(first, N_RATES)
    validation = means[..., None] + common + noise(first, N_RATES)
    chosen = validation.mean(axis=-1).argmax(axis=-1)
    of_first = np.take_along_axis(common, chosen[..., None, None], axis=2)[..., 0, :] + noise(first)
    later = LOOKS.counts[-1] - first
    truth = np.take_along_axis(np.broadcast_to(means, (n_studies, *means.shape)), chosen[..., None], axis=-1)[..., 0]
    # The effect of a seed is the same in all methods and cancels.
    scores = truth[..., None] + np.concatenate([of_first, noise(later) + noise(later)], axis=-1)
    return scores[:, 1:] - scores[:, :1], truth[:, 1:] - truth[:, :1]


def upper_limit(count: int, n: int) -> float:
    """Compute the upper 95 % limit of a share, by Clopper and Pearson."""
    return float(stats.beta.ppf(0.95, count + 1, n - count)) if count < n else 1.0


def figures(decisions: Decisions, truth: np.ndarray) -> dict[str, Any]:
    """Count studies with a wrong verdict of a family, verdicts and seeds."""
    rounding = 1e-9
    wrong = {
        "difference": (decisions.sign != 0) & (decisions.sign * truth < rounding),
        "equivalence": decisions.equivalent & (np.abs(truth) > MARGIN - rounding),
    }
    n = len(truth)
    counts = {name: int(of.any(axis=1).sum()) for name, of in wrong.items()}
    seeds = np.array(LOOKS.counts)[decisions.look]
    return {
        **{f"wrong_{name}": count / n for name, count in counts.items()},
        **{f"wrong_{name}_upper": upper_limit(count, n) for name, count in counts.items()},
        "different": float((decisions.sign != 0).mean()),
        "equivalent": float(decisions.equivalent.mean()),
        "undecided": float((~decisions.is_decided).mean()),
        "seeds": float(seeds.mean()),
        "seeds_of_baseline": float(seeds.max(axis=1).mean()),
    }


def every_seed(differences: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Count what looking at every seed with ordinary 5 % tests would have said, stopping at the first verdict."""
    n_studies, n_methods, n_seeds = differences.shape
    wrong = np.zeros(n_studies, bool)
    active = np.ones((n_studies, n_methods), bool)
    for n in range(3, n_seeds + 1):
        single = LookMoments.from_differences(differences[..., :n], LookSchedule((n,)))
        p = np.stack([single.difference_p()[..., -1], single.equivalence_p(MARGIN)[..., -1]])
        different, equivalent = (holm_adjusted(p) < ALPHA) & active
        mistaken = different & (np.sign(single.means[..., -1]) * truth < 1e-9)
        mistaken |= equivalent & (np.abs(truth) > MARGIN - 1e-9)
        wrong |= mistaken.any(axis=1)
        active &= ~(different | equivalent)
    return {"wrong": float(wrong.mean())}


def scenario_table(scenarios: Sequence[Mapping[str, Any]]) -> str:
    """Write the figures as a table, a row for each number of comparisons and true difference."""
    lines = [
        "| comparisons | true difference | wrong, at looks | wrong, 20 seeds | wrong, every seed "
        + "".join(f"| seeds, sd {spread} " for spread in SPREADS)
        + f"| undecided, sd {SPREADS[-1]} |",
        "| --- | --- " + "| ---: " * (4 + len(SPREADS)) + "|",
    ]
    for family, name in itertools.product((1, 4), DIFFERENCES):
        rows = [row for row in scenarios if (row["comparisons"], row["difference"]) == (family, name)]
        seeds = [[row["seeds"] for row in rows if row["spread"] == spread] for spread in SPREADS]
        wide = [row for row in rows if row["spread"] == SPREADS[-1]]
        cells = [
            str(family),
            name,
            _worst(rows),
            _worst([row["fixed_20"] for row in rows]),
            f"{100 * max(row['every_seed']['wrong'] for row in rows):.1f} %",
            *(f"{np.mean(of_spread):.1f}" for of_spread in seeds),
            " against ".join(
                f"{100 * np.mean([row['undecided'] for row in of_plan]):.0f} %"
                for of_plan in (wide, [row["fixed_20"] for row in wide])
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _worst(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the largest rate of wrong verdicts of a family, with its upper limit."""
    rates = [
        (row[f"wrong_{kind}"], row[f"wrong_{kind}_upper"]) for row in rows for kind in ("difference", "equivalence")
    ]
    rate, upper = max(rates)
    return f"{100 * rate:.1f} % (at most {100 * upper:.1f} %)"


def main() -> None:
    """Simulate every scenario and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--page", action="store_true", help="only write the table, from the recorded figures")
    arguments = parser.parse_args()
    if arguments.page:
        write_page()
        return
    n_studies = arguments.studies
    scenarios = []
    for number, (family, (curve, means), spread, (name, gain)) in enumerate(
        itertools.product((1, 4), CURVES.items(), SPREADS, DIFFERENCES.items())
    ):
        rng = np.random.default_rng([21, number])
        differences, truth = simulate(rng, n_studies, np.full(family, gain * MARGIN), means, spread)
        scenario = {"comparisons": family, "rates": curve, "spread": spread, "difference": name}
        scenario |= figures(decide(differences), truth)
        scenario["fixed_20"] = figures(decide(differences, LookSchedule((20,))), truth)
        scenario["every_seed"] = every_seed(differences, truth)
        # With a single look at 20 seeds, these numbers are constant.
        for key in ("seeds", "seeds_of_baseline"):
            del scenario["fixed_20"][key]
        scenarios.append(scenario)
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in scenario.items()})
    write_results("sequential_verdicts", {"studies": n_studies, "margin": MARGIN, "scenarios": scenarios})
    write_page()


def write_page() -> None:
    """Write the table of the recorded figures to `docs/studies.md`."""
    record = json.loads((RESULTS / "sequential_verdicts.json").read_text(encoding="utf-8"))
    replace_between(DOCS / "studies.md", "simulation", Path(__file__).name, scenario_table(record["scenarios"]))


if __name__ == "__main__":
    main()
