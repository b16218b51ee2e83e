"""Charts of a study: scores, learning rates, losses over steps, costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from ailora.formatting import capitalize, downsample, format_lr, is_real, pluralize
from ailora.plots.chart_spec import COLOURS, Axis, Plot, Series
from ailora.studies.comparison import BaselineComparison, Comparison
from ailora.studies.method_results import MethodResult
from ailora.studies.statistics import Estimate
from ailora.studies.trial import Condition, TrialResult, format_setting
from ailora.studies.verdict_summary import describe_comparison

#: Largest number of points in a curve. Longer curves are thinned.
_MAX_POINTS = 60
#: Largest number of bars in a chart of costs. More costs are only in the table.
_MAX_BARS = 60
#: Width over which the points of all methods in a category are spread, as a share of the category's width.
_CLUSTER_WIDTH = 0.45
#: Fewest seeds for intervals in charts over rates. Intervals from two seeds are so wide that points are hard to see.
_MIN_INTERVAL_SEEDS = 3


def score_charts(comparison: Comparison) -> Iterator[Plot]:
    """Chart the scores with their intervals, for each task and setting."""
    design = comparison.design
    for baseline, others in comparison.by_baseline():
        metric, better = design.metric_label(baseline), "larger" if design.larger_is_better(baseline) else "smaller"
        scored = [c for c in (baseline, *others) if comparison.results[c].score is not None]
        if not scored:
            continue
        yield Plot(
            name=chart_name("scores", baseline.label),
            title=_title(f"Score: {metric}", baseline.label),
            kind="points",
            x=Axis("method", categories=tuple(c.method_label(baseline) for c in scored)),
            y=Axis(metric),
            series=tuple(_score_series(comparison, c.method_label(baseline), {i: c}) for i, c in enumerate(scored)),
            caption=f"Mean over seeds at each method's best learning rate, with its 95 % t-interval; {better} is "
            "better. Methods share seeds, so overlapping intervals do not mean that methods are equal. Compare the "
            "verdicts instead.",
        )


def varied_charts(comparison: Comparison) -> Iterator[Plot]:
    """Chart the scores over the numeric setting of `varied_key`, such as the rank (Figure 5 of arXiv 2510.08034).

    The grid's other settings are fixed in a chart, and each combination of their values has a chart of its own.
    """
    key = varied_key(comparison)
    if key is None:
        return
    by_label: dict[str, list[Condition]] = {}
    for condition in comparison.results:
        if key in condition.values:
            fixed_setting = format_setting({k: v for k, v in condition.values.items() if k != key})
            # Without a setting, the label is that of the task alone.
            task_label = Condition(condition.task, condition.method).label
            label = ", ".join(part for part in (task_label, fixed_setting) if part)
            by_label.setdefault(label, []).append(condition)
    for label, conditions in by_label.items():
        metric = comparison.design.metric_label(conditions[0])
        setting = key.rpartition(".")[2]
        series = (
            _score_series(comparison, method, {c.values[key]: c for c in conditions if c.method == method})
            for method in dict.fromkeys(condition.method for condition in conditions)
        )
        scored = tuple(line for line in series if line.x)
        if not scored:
            continue
        yield Plot(
            name=chart_name(f"over-{setting}", label),
            title=_title(f"{metric} over {setting}", label),
            kind="lines",
            x=Axis(setting, log=_suits_log_axis([condition.values[key] for condition in conditions])),
            y=Axis(metric),
            series=scored,
            caption=f"Mean over seeds at the best learning rate of each method and {setting}, with its 95 % "
            "t-interval.",
        )


def varied_key(comparison: Comparison) -> str | None:
    """Return the grid's key for the x-axis: the rank if it has several values, else the only key with several numbers.

    Returns None if there is no such key.
    """
    grid = comparison.design.config.grid
    numeric_keys = [key for key, values in grid.items() if len(values) > 1 and all(map(is_real, values))]
    if "adapter.rank" in numeric_keys:
        return "adapter.rank"
    return numeric_keys[0] if len(numeric_keys) == 1 else None


def rate_charts(comparison: Comparison) -> Iterator[Plot]:
    """Chart the validation score over the learning rate, for each task and setting."""
    for baseline, others in comparison.by_baseline():
        metric = comparison.design.metric(baseline)
        results = [result for c in (baseline, *others) if (result := comparison.results[c]).curve]
        if not results:
            continue
        yield Plot(
            name=chart_name("rates", baseline.label),
            title=_title(f"Validation {metric} over learning rate", baseline.label),
            kind="lines",
            x=Axis("learning rate", log=True),
            y=Axis(f"validation {metric}"),
            series=tuple(
                _series(
                    result.condition.method_label(baseline),
                    {rate: _hide_wide_interval(estimate) for rate, estimate in result.curve.items()},
                    [
                        pluralize(estimate.n, "seed") + ("; the best rate" if rate == result.search.best else "")
                        for rate, estimate in result.curve.items()
                    ],
                    method_style(comparison, result.condition),
                )
                for result in results
            ),
            caption=f"Mean over seeds; the band is its 95 % t-interval where a rate has at least {_MIN_INTERVAL_SEEDS} "
            "seeds. Each method is compared at its best rate.",
        )


def shared_rate_charts(comparison: Comparison) -> Iterator[Plot]:
    """Chart the difference to the baseline at each shared rate and at the methods' best rates, for each task."""
    for baseline, others in comparison.by_baseline():
        shared = {c: against for c in others if (against := comparison.against_baseline[c]).shared_rates.differences}
        rates = sorted({rate for against in shared.values() for rate in against.shared_rates.differences})
        if not rates:
            continue
        has_best = any(against.difference is not None for against in shared.values())
        categories = [*map(format_lr, rates), "own best"] if has_best else [*map(format_lr, rates)]
        shading_note = " Shaded: each method at its own best rate." if has_best else ""
        # Shifts along x, which place the methods side by side in a category.
        shifts = {c: (i - (len(shared) - 1) / 2) * _CLUSTER_WIDTH / len(shared) for i, c in enumerate(shared)}
        better = "above" if comparison.design.larger_is_better(baseline) else "below"
        yield Plot(
            name=chart_name("shared-rates", baseline.label),
            title=_title(f"Minus {baseline.method} at shared rates", baseline.label),
            kind="points",
            x=Axis("learning rate", categories=tuple(categories)),
            y=Axis(f"difference of {comparison.design.metric_label(baseline)}"),
            series=tuple(
                _series(
                    condition.method_label(baseline),
                    _by_category(against, rates, shifts[condition]),
                    _shared_rate_notes(against),
                    method_style(comparison, condition),
                )
                for condition, against in shared.items()
            ),
            caption="Differences at each learning rate run by both methods, paired by seed; the 95 % t-interval where "
            f"there are at least {_MIN_INTERVAL_SEEDS} seeds. Points {better} 0 are better than {baseline.method}. If "
            f"points change sides, the shared rate decides which method seems better.{shading_note}",
            shaded=(len(rates) - 0.5, len(rates) + 0.5) if has_best else None,
        )


def _by_category(against: BaselineComparison, rates: Sequence[float], shift: float) -> dict[float, Estimate]:
    """Return x -> difference to the baseline.

    The x of a shared rate is its index in `rates` plus `shift`. The difference at the methods' best rates comes last.
    """
    differences = against.shared_rates.differences
    estimates = {i + shift: differences[rate].estimate for i, rate in enumerate(rates) if rate in differences}
    if against.difference is not None:
        estimates[len(rates) + shift] = against.difference.estimate
    return {x: _hide_wide_interval(estimate) for x, estimate in estimates.items()}


def _hide_wide_interval(estimate: Estimate) -> Estimate:
    """Return an estimate without the interval of very few seeds, which is so wide that nothing else could be seen."""
    return estimate if estimate.n >= _MIN_INTERVAL_SEEDS else replace(estimate, low=None, high=None)


def _shared_rate_notes(against: BaselineComparison) -> list[str]:
    notes = [pluralize(len(difference.seeds), "seed") for difference in against.shared_rates.differences.values()]
    return notes if against.difference is None else [*notes, describe_comparison(against)]


def convergence_charts(comparison: Comparison) -> Iterator[Plot]:
    """Chart the validation loss and the study's metric over steps, at each method's best rate."""
    for baseline, others in comparison.by_baseline():
        for metric in dict.fromkeys(("loss", comparison.design.metric(baseline))):
            # A point holds a step and the values of all seeds, equally many at every step. A single seed has no range.
            series = tuple(
                Series(
                    name=condition.method_label(baseline),
                    x=[step for step, _ in points],
                    y=[_finite_mean(values) for _, values in points],
                    low=[min(values) for _, values in points] if len(points[0][1]) > 1 else (),
                    high=[max(values) for _, values in points] if len(points[0][1]) > 1 else (),
                    style=method_style(comparison, condition),
                )
                for condition in (baseline, *others)
                if (points := _values_over_steps(list(comparison.results[condition].at_best.values()), metric))
            )
            if series:
                yield Plot(
                    name=chart_name(f"convergence-{metric}", baseline.label),
                    title=_title(f"Validation {metric} over steps", baseline.label),
                    kind="lines",
                    x=Axis("step"),
                    y=Axis(f"validation {metric}"),
                    series=series,
                    caption="At each method's best learning rate: mean over seeds, and range from the lowest to the "
                    "highest seed.",
                )


#: Name of a chart -> label with quantity and unit, and function that returns a method's cost.
_COSTS: dict[str, tuple[str, Callable[[MethodResult], float | None]]] = {
    "step": ("milliseconds a step", lambda result: result.step_milliseconds),
    "init": ("seconds to load and adapt", lambda result: result.mean("init_seconds")),
    "memory": ("peak memory, MiB", lambda result: _divide(result.mean("peak_memory_bytes"), 2**20)),
    "file": ("adapter file, KiB", lambda result: _divide(result.mean("adapter_bytes"), 2**10)),
}


def cost_charts(comparison: Comparison) -> Iterator[Plot]:
    """Chart time, memory and file size at the best learning rates, with a bar for each method and setting."""
    results = [result for result in comparison.results.values() if result.at_best]
    methods = list(dict.fromkeys(result.condition.method for result in results))
    labels = list(dict.fromkeys(result.condition.label for result in results))
    if not results or len(methods) * len(labels) > _MAX_BARS:
        return
    for name, (title, get_cost) in _COSTS.items():
        costs = {(r.condition.label, r.condition.method): cost for r in results if (cost := get_cost(r)) is not None}
        if not costs:
            continue
        yield Plot(
            name=chart_name(f"cost-{name}", ""),
            title=capitalize(title),
            kind="bars",
            x=Axis("method", categories=tuple(methods)),
            y=Axis(title),
            series=tuple(
                Series(
                    name=label or title,
                    x=list(range(len(methods))),
                    y=[costs.get((label, method), math.nan) for method in methods],
                    # A series here is a task and setting, not a method. No series has style 0, which means the baseline
                    # in other charts. Styles start at 2, because 1 is the first method's.
                    style=1 + (number + 1) % (len(COLOURS) - 1),
                )
                for number, label in enumerate(labels)
            ),
            caption="Means over seeds at each method's best learning rate, on the machine that ran the trials.",
        )


def _score_series(comparison: Comparison, name: str, conditions: Mapping[float, Condition]) -> Series:
    """Return a method's scores as a series. `conditions` maps each x to a condition of the method."""
    results = {x: comparison.results[conditions[x]] for x in sorted(conditions)}
    scores = {x: result.score for x, result in results.items() if result.score is not None}
    notes = [
        f"best rate {format_lr(result.search.best)}; {pluralize(len(result.at_best), 'seed')}"
        for result in results.values()
        if result.score is not None
    ]
    return _series(name, scores, notes, method_style(comparison, next(iter(conditions.values()))))


def _series(name: str, estimates: Mapping[float, Estimate], notes: Sequence[str], style: int) -> Series:
    """Return estimates over x as a series with intervals. Unknown ends of an interval are NaN."""
    return Series(
        name=name,
        x=list(estimates),
        y=[estimate.mean for estimate in estimates.values()],
        low=[math.nan if estimate.low is None else estimate.low for estimate in estimates.values()],
        high=[math.nan if estimate.high is None else estimate.high for estimate in estimates.values()],
        notes=notes,
        style=style,
    )


def method_style(comparison: Comparison, condition: Condition) -> int:
    """Return the style of a condition's method. A method has the same style in all charts; the baseline is black."""
    design = comparison.design
    methods = [design.baseline, *(name for name in design.methods if name != design.baseline)]
    return methods.index(condition.method)


def _values_over_steps(results: Sequence[TrialResult], metric: str) -> list[tuple[int, list[float]]]:
    """Return at most 60 pairs of a step and the values of all seeds at this step."""
    histories = [history for result in results if (history := _by_step(result.history, metric))]
    if not histories:
        return []
    # Keep only steps with values of all seeds. At a step without the value of some seed, the mean would jump.
    steps = sorted(set(histories[0]).intersection(*histories[1:]))
    return [(step, [history[step] for history in histories]) for step in downsample(steps, _MAX_POINTS)]


def _by_step(history: Sequence[Mapping[str, float]], metric: str) -> dict[int, float]:
    # Earlier versions stored records without some of these keys.
    return {int(r["step"]): r[metric] for r in history if is_real(r.get(metric)) and is_real(r.get("step"))}


def _finite_mean(values: Sequence[float]) -> float:
    # `fmean` raises an error for infinite values of both signs.
    return statistics.fmean(values) if all(map(math.isfinite, values)) else math.nan


def _divide(value: float | None, unit: int) -> float | None:
    return None if value is None else value / unit


def _suits_log_axis(values: Sequence[float]) -> bool:
    """Return whether all values are positive and span at least a factor of eight, like most lists of ranks."""
    return min(values) > 0 and max(values) / min(values) >= 8


def chart_name(subject: str, label: str) -> str:
    """Build a chart's name from a subject, and from the letters and digits in a condition's label."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in label).split()
    return "-".join([subject, *words])


def _title(subject: str, label: str) -> str:
    return f"{subject}, {label}" if label else subject
