"""What a study has found, as charts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ailora.analysis.charts import Axis, Plot, Series
from ailora.report.study_words import difference_words, seeds_words
from ailora.report.words import rate, thinned
from ailora.studies.comparison import Comparison
from ailora.studies.grid import Group
from ailora.studies.measured import Measured, report_split
from ailora.studies.report import place_of
from ailora.studies.stats import Estimate
from ailora.studies.store import Trial

#: Points of a curve beyond which it is thinned.
_MOST_POINTS = 120
#: The value of a fact over the runs of a group.
Of = Callable[[Measured], float | None]


def score_charts(found: Comparison) -> Iterator[Plot]:
    """Scores with their intervals, and differences to the baseline, for each task and point."""
    for base, here in by_place(found):
        metric = f"{found.grid.metric_of(base)} ({report_split(found.grid, base)})"
        place, best = place_of(found, base), "larger" if found.grid.larger_is_better(base) else "smaller"
        scored = [group for group in here if found.measured[group].score is not None]
        names = tuple(label(group, base, found) for group in scored)
        if not scored:
            continue
        yield Plot(
            name=_named("scores", place),
            title=_titled(f"Score: {metric}", place),
            kind="points",
            x=Axis("method", categories=names),
            y=Axis(metric),
            series=tuple(_dot(found, names, i, _score_of(found.measured[g])) for i, g in enumerate(scored)),
            caption=f"Mean over seeds at each method's best learning rate, with its 95 % t-interval; {best} is better. "
            "Methods share seeds, so overlapping intervals do not make a tie: the differences tell.",
        )
        others = [group for group in here if group != base and found.compared[group].difference is not None]
        if others:
            names = tuple(label(group, base, found) for group in (base, *others))
            dots = (Series(names[0], [0], [0.0], notes=["the baseline"]), *_differences(found, names, others))
            yield Plot(
                name=_named("differences", place),
                title=_titled(f"Minus the baseline {base.method}", place),
                kind="points",
                x=Axis("method", categories=names),
                y=Axis("difference"),
                series=dots,
                caption=f"Differences of {metric}, paired by seed, with the 95 % t-interval of their mean. An "
                f"interval that holds 0 is a tie; {best} is better.",
            )


def varied_charts(found: Comparison) -> Iterator[Plot]:
    """Scores over a setting that is a number, as the rank (the paper's Figure 5); for each of the others' points."""
    key = varied(found)
    if key is None:
        return
    places: dict[tuple[str, str], list[Group]] = {}
    for group in found.measured:
        if key in group.values:
            rest = ", ".join(f"{k.rpartition('.')[2]} {v}" for k, v in group.values.items() if k != key)
            places.setdefault((group.task, rest), []).append(group)
    for (task, rest), groups in places.items():
        one = groups[0]
        metric = f"{found.grid.metric_of(one)} ({report_split(found.grid, one)})"
        place = ", ".join(part for part in (place_of(found, Group(task, one.method)), rest) if part)
        word = key.rpartition(".")[2]
        methods = dict.fromkeys(group.method for group in groups)
        yield Plot(
            name=_named(f"over-{word}", place),
            title=_titled(f"{metric} over {word}", place),
            kind="lines",
            x=Axis(word, log=_spans_much([group.values[key] for group in groups])),
            y=Axis(metric),
            series=tuple(_over(found, method, key, groups) for method in methods),
            caption=f"Mean over seeds at the best learning rate of each method and {word}, with its 95 % t-interval.",
        )


def varied(found: Comparison) -> str | None:
    """The key of the grid that charts are drawn over: the rank, else the only one with several numbers."""
    grid = found.grid.config.grid
    numbers = [key for key, values in grid.items() if len(values) > 1 and all(map(_is_real, values))]
    return "adapter.rank" if "adapter.rank" in numbers else numbers[0] if len(numbers) == 1 else None


def rate_charts(found: Comparison) -> Iterator[Plot]:
    """Validation score over learning rate, for each task and point."""
    for base, here in by_place(found):
        metric, place = found.grid.metric_of(base), place_of(found, base)
        drawn = [(group, found.measured[group]) for group in here if found.measured[group].curve]
        if not drawn:
            continue
        yield Plot(
            name=_named("rates", place),
            title=_titled(f"Validation {metric} over learning rate", place),
            kind="lines",
            x=Axis("learning rate", log=True),
            y=Axis(f"validation {metric}"),
            series=tuple(
                Series(
                    name=label(group, base, found),
                    x=list(measured.curve),
                    y=[one.mean for one in measured.curve.values()],
                    **_ends(list(measured.curve.values())),
                    notes=[_rate_note(measured, at, one) for at, one in measured.curve.items()],
                    style=style_of(found, group),
                )
                for group, measured in drawn
            ),
            caption="Mean over seeds; the band is its 95 % t-interval where a rate has several seeds. Each method is "
            "compared at its own peak.",
        )


def convergence_charts(found: Comparison) -> Iterator[Plot]:
    """Validation loss and the deciding metric over steps, at each method's best rate."""
    for base, here in by_place(found):
        metric, place = found.grid.metric_of(base), place_of(found, base)
        for fact in dict.fromkeys(("loss", metric)):
            curves = [(group, _curve(list(found.measured[group].at_best.values()), fact)) for group in here]
            series = tuple(
                Series(
                    name=label(group, base, found),
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
                name=_named(f"convergence-{fact}", place),
                title=_titled(f"Validation {fact} over steps", place),
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
        "step": ("milliseconds a step", _step_milliseconds),
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
            name=_named(f"cost-{name}", ""),
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


def by_place(found: Comparison) -> Iterator[tuple[Group, list[Group]]]:
    """Every baseline's group, and all groups that are compared with it, itself first."""
    for base in (group for group in found.measured if group.method == found.grid.baseline):
        yield base, [base, *(g for g in found.compared if found.grid.baseline_of(g) == base)]


def label(group: Group, base: Group, found: Comparison) -> str:
    """A method beside its baseline, with its point where that is another one."""
    return group.method if {*group.point} <= {*base.point} else f"{group.method} ({found.grid.point_of(group)})"


def style_of(found: Comparison, group: Group) -> int:
    """A method looks the same in all charts; the baseline is black."""
    grid = found.grid
    return [grid.baseline, *(name for name in grid.methods if name != grid.baseline)].index(group.method)


def _dot(found: Comparison, names: Sequence[str], i: int, known: tuple[Group, Estimate | None, str]) -> Series:
    group, estimate, note = known
    value = math.nan if estimate is None else estimate.mean
    ends = _ends([estimate]) if estimate is not None else {}
    return Series(names[i], [i], [value], **ends, notes=[note], style=style_of(found, group))


def _score_of(measured: Measured) -> tuple[Group, Estimate | None, str]:
    note = f"best rate {rate(measured.progress.best)}; {seeds_words(measured)}"
    return measured.group, measured.score, note


def _differences(found: Comparison, names: Sequence[str], others: Sequence[Group]) -> Iterator[Series]:
    return (_dot(found, names, i, _difference_of(found, group)) for i, group in enumerate(others, start=1))


def _difference_of(found: Comparison, group: Group) -> tuple[Group, Estimate | None, str]:
    compared = found.compared[group]
    return group, compared.difference and compared.difference.estimate, difference_words(compared)


def _over(found: Comparison, method: str, key: str, groups: Sequence[Group]) -> Series:
    own = sorted((g for g in groups if g.method == method), key=lambda g: g.values[key])
    scored = [(g, score) for g in own if (score := found.measured[g].score) is not None]
    return Series(
        name=method,
        x=[g.values[key] for g, _ in scored],
        y=[score.mean for _, score in scored],
        **_ends([score for _, score in scored]),
        notes=[_score_of(found.measured[g])[2] for g, _ in scored],
        style=style_of(found, own[0]),
    )


def _ends(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Of estimates their intervals, NaN where there is none."""
    return {
        "low": [math.nan if one.low is None else one.low for one in estimates],
        "high": [math.nan if one.high is None else one.high for one in estimates],
    }


def _rate_note(measured: Measured, at: float, one: Estimate) -> str:
    best = "; the best rate" if at == measured.progress.best else ""
    return f"{one.n} seed{'s' if one.n > 1 else ''}{best}"


def _curve(trials: Sequence[Trial], fact: str) -> list[tuple[int, list[float]]]:
    """(step, values of the seeds), at the steps that all seeds have, thinned."""
    histories = [_by_step((trial.outcome or {}).get("history") or [], fact) for trial in trials]
    histories = [history for history in histories if history]
    if not histories:
        return []
    steps = sorted(set(histories[0]).intersection(*histories[1:]))
    return [(step, [history[step] for history in histories]) for step in thinned(steps, _MOST_POINTS)]


def _by_step(history: Sequence[Mapping[str, Any]], fact: str) -> dict[int, float]:
    return {one["step"]: one[fact] for one in history if _is_real(one.get(fact)) and _is_real(one.get("step"))}


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if all(map(math.isfinite, values)) else math.nan


def _step_milliseconds(measured: Measured) -> float | None:
    seconds, steps = measured.mean("train_seconds"), measured.mean("steps")
    return None if seconds is None or not steps else 1000 * seconds / steps


def _scaled(value: float | None, unit: int) -> float | None:
    return None if value is None else value / unit


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _spans_much(values: Sequence[float]) -> bool:
    """Whether values are better seen on a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) >= 8


def _named(what: str, place: str) -> str:
    """A name that files can have."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in place).split()
    return "-".join([what, *words])


def _titled(what: str, place: str) -> str:
    return f"{what}, {place}" if place else what
