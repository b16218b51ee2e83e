"""What a study has found, as charts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ailora.formatting import format_lr, is_real
from ailora.plots.chart_spec import Axis, Plot, Series
from ailora.studies.comparison import Comparison
from ailora.studies.conditions import Group
from ailora.studies.method_results import Measured, report_split
from ailora.studies.statistics import Estimate
from ailora.studies.summary import beside, difference_words, place_of, seeds_words


def score_charts(found: Comparison) -> Iterator[Plot]:
    """Scores with their intervals, and differences to the baseline, for each task and point."""
    for base, compared in found.places:
        metric = f"{found.grid.metric_of(base)} ({report_split(found.grid, base)})"
        place, best = place_of(found, base), "larger" if found.grid.larger_is_better(base) else "smaller"
        scored = [group for group in (base, *compared) if found.measured[group].score is not None]
        names = tuple(beside(found, group, base) for group in scored)
        if not scored:
            continue
        yield Plot(
            name=named("scores", place),
            title=titled(f"Score: {metric}", place),
            kind="points",
            x=Axis("method", categories=names),
            y=Axis(metric),
            series=tuple(_dot(found, names, i, _score_of(found.measured[g])) for i, g in enumerate(scored)),
            caption=f"Mean over seeds at each method's best learning rate, with its 95 % t-interval; {best} is better. "
            "Methods share seeds, so overlapping intervals do not make a tie: the differences tell.",
        )
        others = [group for group in compared if found.compared[group].difference is not None]
        if others:
            names = tuple(beside(found, group, base) for group in (base, *others))
            dots = (Series(names[0], [0], [0.0], notes=["the baseline"]), *_differences(found, names, others))
            yield Plot(
                name=named("differences", place),
                title=titled(f"Minus the baseline {base.method}", place),
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
            name=named(f"over-{word}", place),
            title=titled(f"{metric} over {word}", place),
            kind="lines",
            x=Axis(word, log=_spans_much([group.values[key] for group in groups])),
            y=Axis(metric),
            series=tuple(_over(found, method, key, groups) for method in methods),
            caption=f"Mean over seeds at the best learning rate of each method and {word}, with its 95 % t-interval.",
        )


def varied(found: Comparison) -> str | None:
    """The key of the grid that charts are drawn over: the rank, else the only one with several numbers."""
    grid = found.grid.config.grid
    numbers = [key for key, values in grid.items() if len(values) > 1 and all(map(is_real, values))]
    return "adapter.rank" if "adapter.rank" in numbers else numbers[0] if len(numbers) == 1 else None


def rate_charts(found: Comparison) -> Iterator[Plot]:
    """Validation score over learning rate, for each task and point."""
    for base, compared in found.places:
        metric, place = found.grid.metric_of(base), place_of(found, base)
        drawn = [(group, found.measured[group]) for group in (base, *compared) if found.measured[group].curve]
        if not drawn:
            continue
        yield Plot(
            name=named("rates", place),
            title=titled(f"Validation {metric} over learning rate", place),
            kind="lines",
            x=Axis("learning rate", log=True),
            y=Axis(f"validation {metric}"),
            series=tuple(
                Series(
                    name=beside(found, group, base),
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
    note = f"best rate {format_lr(measured.progress.best)}; {seeds_words(measured)}"
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


def _spans_much(values: Sequence[float]) -> bool:
    """Whether values are better seen on a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) >= 8


def named(what: str, place: str) -> str:
    """A name that files can have."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in place).split()
    return "-".join([what, *words])


def titled(what: str, place: str) -> str:
    """A title, with the task and point that it is of."""
    return f"{what}, {place}" if place else what
