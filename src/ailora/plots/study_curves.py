"""How a study's runs went, as charts: losses over steps, time, memory and bytes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ailora.formatting import downsample, is_real
from ailora.plots.chart_spec import Axis, Plot, Series
from ailora.plots.study_charts import named, style_of, titled
from ailora.studies.comparison import Comparison
from ailora.studies.method_results import Measured
from ailora.studies.summary import beside, place_of
from ailora.studies.trial_storage import Trial

#: Points of a curve beyond which it is thinned.
_MOST_POINTS = 60
#: The value of a fact over the runs of a group.
Of = Callable[[Measured], float | None]


def convergence_charts(found: Comparison) -> Iterator[Plot]:
    """Validation loss and the deciding metric over steps, at each method's best rate."""
    for base, compared in found.places:
        metric, place = found.grid.metric_of(base), place_of(found, base)
        for fact in dict.fromkeys(("loss", metric)):
            curves = [
                (group, _curve(list(found.measured[group].at_best.values()), fact)) for group in (base, *compared)
            ]
            series = tuple(
                Series(
                    name=beside(found, group, base),
                    x=[step for step, _ in points],
                    y=[_mean(values) for _, values in points],
                    low=[min(values) for _, values in points] if many else (),
                    high=[max(values) for _, values in points] if many else (),
                    style=style_of(found, group),
                )
                for group, points in curves
                if points
                for many in [len(points[0][1]) > 1]
            )
            if not series:
                continue
            yield Plot(
                name=named(f"convergence-{fact}", place),
                title=titled(f"Validation {fact} over steps", place),
                kind="lines",
                x=Axis("step"),
                y=Axis(f"validation {fact}"),
                series=series,
                caption="At each method's best learning rate: mean over its seeds, and the range from the lowest to "
                "the highest of them.",
            )


def cost_charts(found: Comparison) -> Iterator[Plot]:
    """Time, memory and bytes at the best rate, a bar for each method and place."""
    facts: dict[str, tuple[str, Of]] = {
        "step": ("milliseconds a step", lambda m: m.step_milliseconds),
        "init": ("seconds to load and adapt", lambda m: m.mean("init_seconds")),
        "memory": ("peak memory, MiB", lambda m: _scaled(m.mean("peak_memory_bytes"), 2**20)),
        "file": ("adapter file, KiB", lambda m: _scaled(m.mean("adapter_bytes"), 2**10)),
    }
    groups = [group for group in found.measured if found.measured[group].at_best]
    methods = list(dict.fromkeys(group.method for group in groups))
    places = list(dict.fromkeys(place_of(found, group) for group in groups))
    # More bars than that are read in the table.
    if not groups or len(methods) * len(places) > 60:
        return
    for name, (words, of) in facts.items():
        values = {(place_of(found, group), group.method): of(found.measured[group]) for group in groups}
        if all(value is None for value in values.values()):
            continue
        yield Plot(
            name=named(f"cost-{name}", ""),
            title=words[0].upper() + words[1:],
            kind="bars",
            x=Axis("method", categories=tuple(methods)),
            y=Axis(words),
            series=tuple(
                Series(
                    name=place or words,
                    x=list(range(len(methods))),
                    y=[_or_nan(values.get((place, method))) for method in methods],
                    style=(number + 2) % 8,
                )
                for number, place in enumerate(places)
            ),
            caption="Means over seeds at each method's best learning rate, on the machine that ran the trials.",
        )


def _curve(trials: Sequence[Trial], fact: str) -> list[tuple[int, list[float]]]:
    """(step, values of the seeds), at the steps that all seeds have, thinned."""
    histories = [_by_step((trial.outcome or {}).get("history") or [], fact) for trial in trials]
    histories = [history for history in histories if history]
    if not histories:
        return []
    steps = sorted(set(histories[0]).intersection(*histories[1:]))
    return [(step, [history[step] for history in histories]) for step in downsample(steps, _MOST_POINTS)]


def _by_step(history: Sequence[Mapping[str, Any]], fact: str) -> dict[int, float]:
    return {one["step"]: one[fact] for one in history if is_real(one.get(fact)) and is_real(one.get("step"))}


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if all(map(math.isfinite, values)) else math.nan


def _scaled(value: float | None, unit: int) -> float | None:
    return None if value is None else value / unit


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
