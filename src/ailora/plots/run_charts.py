"""Runs as charts: losses, metrics and learning rates over steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ailora.formatting import is_real, thinned
from ailora.plots.chart_spec import Axis, Heat, Plot, Series
from ailora.report.run_reader import Run, confusion

_MOST_POINTS = 400
#: Classes beyond which a matrix of them shows nothing.
_MOST_CLASSES = 20
_LOGGED = {"learning_rate": "learning rate", "grad_norm": "norm of the gradient"}


def curve_charts(runs: Sequence[Run]) -> Iterator[Plot]:
    """Validation loss and metrics of the evaluations, then what was logged in training."""
    evaluated = dict.fromkeys(key for run in runs for one in run.history for key in one)
    timed = ("step", "epoch", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    for fact in (key for key in evaluated if key not in timed):
        caption = "Measured on the validation split during training."
        chart = _over_steps(runs, "history", fact, (f"Validation {fact.replace('_', ' ')}", caption))
        if chart:
            yield chart
    chart = _over_steps(runs, "log", "loss", ("Training loss", "Mean since the step before that was logged."))
    if chart:
        yield chart
    for fact, words in _LOGGED.items():
        chart = _over_steps(runs, "log", fact, (words[0].upper() + words[1:], "As logged in training."))
        if chart:
            yield chart


def confusion_charts(runs: Sequence[Run]) -> Iterator[Heat]:
    """Which class was taken for which."""
    for number, run in enumerate(runs, start=1):
        found = confusion(run)
        if found is None or not 2 <= len(found[0]) <= _MOST_CLASSES:
            continue
        names, counts, split = found
        right = sum(counts[i][i] for i in range(len(names)))
        total = sum(map(sum, counts))
        yield Heat(
            name=f"confusion-{number}",
            title="Labels and predictions" + (f", {run.name}" if len(runs) > 1 else ""),
            rows=tuple(names),
            columns=tuple(names),
            values=tuple(tuple(float(count) for count in row) for row in counts),
            row_label="label",
            column_label="prediction",
            unit="rows",
            caption=f"Rows of the {split} split: {right:,} of {total:,} are predicted as they are labelled.",
        )


def _over_steps(runs: Sequence[Run], where: str, fact: str, words: tuple[str, str]) -> Plot | None:
    title, caption = words
    series = [
        Series(run.name, [x for x, _ in points], [y for _, y in points], style=number)
        for number, run in enumerate(runs)
        if (points := _points(getattr(run, where), fact))
    ]
    if not series:
        return None
    name = f"{'validation' if where == 'history' else 'training'}-{fact.replace('_', '-')}"
    label = title[0].lower() + title[1:]
    return Plot(name, title, "lines", Axis("step"), Axis(label), tuple(series), caption)


def _points(records: Sequence[dict[str, Any]], fact: str) -> list[tuple[float, float]]:
    points = [(one["step"], one[fact]) for one in records if is_real(one.get("step")) and is_real(one.get(fact))]
    return thinned(points, _MOST_POINTS)
