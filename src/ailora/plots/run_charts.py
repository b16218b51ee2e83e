"""Charts of runs: losses, metrics and learning rates over steps (the paper's Figure 3), and confusion matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ailora.formatting import capitalize, downsample, is_real
from ailora.plots.chart_spec import Axis, Heatmap, Plot, Series
from ailora.plots.matplotlib_backend import save_figure

#: Name of a run -> records of evaluations or of logged steps, each with a `step`.
Histories = Mapping[str, Sequence[Mapping[str, object]]]

#: Largest number of points in a curve. Longer curves are thinned.
_MAX_POINTS = 400
#: Largest number of classes in a confusion matrix. Larger matrices are not drawn.
_MAX_CLASSES = 20
#: Keys in the Trainer's evaluations that are not metrics.
_NON_METRICS = ("step", "epoch", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
_LOGGED_LABELS = {"loss": "training loss", "learning_rate": "learning rate", "grad_norm": "norm of the gradient"}


def validation_curves(histories: Histories, metrics: Sequence[str] | None = None) -> Iterator[Plot]:
    """Chart the validation loss and metrics over steps, with a line for each run.

    Args:
        histories: Name of a run -> evaluations.
        metrics: Keys of the evaluations to chart. None means all keys except steps, epochs and timings.

    Yields:
        Chart of each metric that has values.
    """
    if metrics is None:
        keys = dict.fromkeys(key for history in histories.values() for record in history for key in record)
        metrics = [key for key in keys if key not in _NON_METRICS]
    for metric in metrics:
        label, caption = f"validation {metric.replace('_', ' ')}", "Measured on the validation split during training."
        yield from _over_steps(histories, metric, name=f"validation-{metric}", label=label, caption=caption)


def training_curves(logs: Histories) -> Iterator[Plot]:
    """Chart the training loss, the learning rate and the gradient norm over steps, with a line for each run.

    Args:
        logs: Name of a run -> logged steps.

    Yields:
        Chart of each quantity that has values.
    """
    for key, label in _LOGGED_LABELS.items():
        caption = "Mean since the previous logged step." if key == "loss" else "As logged in training."
        yield from _over_steps(logs, key, name=f"training-{key}", label=label, caption=caption)


def save_validation_curves(histories: Histories, metrics: Sequence[str], file: Path, *, title: str) -> None:
    """Draw `validation_curves` into a file. See `save_figure`."""
    save_figure(list(validation_curves(histories, metrics)), file, title=title)


def confusion_chart(
    labels: Sequence[str], counts: Sequence[Sequence[int]], split: str, *, name: str, title: str
) -> Heatmap | None:
    """Chart a confusion matrix.

    Args:
        labels: Names of the classes.
        counts: `counts[i][j]` is the number of data rows with label i and prediction j.
        split: Name of the split with the data rows.
        name: Name of the chart.
        title: Title of the chart.

    Returns:
        Chart. None for fewer than two or more than 20 classes.
    """
    if not 2 <= len(labels) <= _MAX_CLASSES:
        return None
    correct = sum(counts[i][i] for i in range(len(labels)))
    return Heatmap(
        name=name,
        title=title,
        rows=tuple(labels),
        columns=tuple(labels),
        values=tuple(tuple(map(float, row)) for row in counts),
        row_label="label",
        column_label="prediction",
        unit="rows",
        caption=f"Rows of the {split} split: {correct:,} of {sum(map(sum, counts)):,} predictions equal the label.",
    )


def _over_steps(histories: Histories, key: str, *, name: str, label: str, caption: str) -> Iterator[Plot]:
    """Chart a quantity over steps if any run has values."""
    curves = {run: _points(records, key) for run, records in histories.items()}
    # Number the runs before dropping runs without values, so that a run has the same style in all charts.
    series = tuple(
        Series(run, [step for step, _ in points], [value for _, value in points], style=style)
        for style, (run, points) in enumerate(curves.items())
        if points
    )
    if series:
        title = capitalize(label)
        yield Plot(name.replace("_", "-"), title, "lines", Axis("step"), Axis(label), series, caption)


def _points(records: Sequence[Mapping[str, object]], key: str) -> list[tuple[float, float]]:
    pairs = ((record.get("step"), record.get(key)) for record in records)
    return downsample([(step, value) for step, value in pairs if is_real(step) and is_real(value)], _MAX_POINTS)
