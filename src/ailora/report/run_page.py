"""Chapter of runs: curves, metrics, samples, costs and settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ailora.formatting import (
    format_duration,
    format_lr,
    format_number,
    format_value,
    is_finite,
    pluralize,
    quote_argument,
    shorten,
)
from ailora.plots.chart_spec import Heatmap
from ailora.plots.run_charts import confusion_chart, training_curves, validation_curves
from ailora.recipes.config.yaml_file import format_yaml
from ailora.report.document import (
    Block,
    Chapter,
    Charts,
    Code,
    KeyValues,
    Note,
    Paragraphs,
    ReportTable,
    section,
    sections,
)
from ailora.report.report_settings import flatten_keys, settings_blocks
from ailora.report.run_reader import Run, count_predictions
from ailora.report.search_section import search_blocks
from ailora.report.versions import version_table

_MAX_SAMPLES = 20
_MAX_SAMPLE_CHARS = 1500
_MAX_CONFIGS = 8
#: Keys below `data` that affect the training rows only.
_TRAINING_DATA = ("train", "max_train_samples")
#: Key of `result.json` -> column of the table of costs.
_COST_COLUMNS = {
    "trainable_parameters": "trainable parameters",
    "total_parameters": "all parameters",
    "steps": "steps",
    "init_seconds": "to load and adapt",
    "train_seconds": "training",
    "peak_memory_bytes": "peak memory",
    "adapter_bytes": "adapter file",
}


def run_chapter(runs: Sequence[Run]) -> Chapter:
    """Build the chapter of a run, or of several runs beside each other.

    Args:
        runs: Runs with distinct names, at least one.

    Returns:
        The chapter, with the summary first.
    """
    several = len(runs) > 1
    # Built before the summary, which shows the notes of runs: unreadable predictions add a note to their run.
    confusion = Charts(tuple(_confusion_charts(runs)))
    curves = (
        *validation_curves({run.name: run.history for run in runs}),
        *training_curves({run.name: run.log for run in runs}),
    )
    # Every run has its own output folder, so the folder would always be listed as a difference.
    configs = {(run.name,): {k: v for k, v in run.config.items() if k != "output"} for run in runs if run.config}
    versions = {run.name if several else "version": run.result.get("versions") for run in runs}
    return Chapter(
        title=pluralize(len(runs), "run") if several else runs[0].name,
        kind="runs" if several else "run",
        sections=sections(
            section("Summary", *_summary(runs)),
            section("Search", *(() if several else search_blocks(runs[0].search))),
            section("Curves", Charts(curves)),
            section("Metrics", _metric_table(runs), confusion),
            section("Samples", *map(_sample_table, runs)),
            section("Cost", _cost_table(runs)),
            section("Settings", *settings_blocks(configs, ("run",))),
            section("Versions", version_table("Libraries that trained", versions)),
            section("Run it again", *_instructions(runs)),
        ),
    )


def _summary(runs: Sequence[Run]) -> list[Block]:
    several = len(runs) > 1
    notes: list[Block] = [
        Note(f"{run.name}: {note}" if several else note, "note" if run.result else "error")
        for run in runs
        for note in run.notes
    ]
    pairs = () if several else tuple(_key_values(runs[0]).items())
    return [
        *notes,
        KeyValues(pairs),
        Paragraphs(tuple(map(_describe_run, runs)), listed=several),
        Paragraphs(tuple(_compare_losses(runs))),
    ]


def _key_values(run: Run) -> dict[str, str]:
    config = flatten_keys(run.config)
    values = {
        "policy": format_value(config.get("adapter.policy")),
        "rank": format_value(config.get("adapter.rank")),
        "learning rate": format_lr(config.get("training.learning_rate")),
        "seed": format_value(config.get("training.seed"), "seed"),
        "steps": format_value(run.result.get("steps")),
        "training": format_duration(run.result.get("train_seconds")),
    }
    # Missing values are formatted as `-`.
    return {key: text for key, text in values.items() if text != "-"}


def _describe_run(run: Run) -> str:
    policy = flatten_keys(run.config).get("adapter.policy")
    name = run.name if policy in (None, run.name) else f"{run.name} ({format_value(policy)})"
    if not run.metrics:
        step = max((step for record in run.log if is_finite(step := record.get("step"))), default=None)
        return f"{name} has no result yet" + (f"; its last logged step is {step:,}." if step is not None else ".")
    scores = "; ".join(f"{split} {format_value(values)}" for split, values in run.metrics.items())
    return f"{name}: {scores}." + _describe_best_evaluations(run)


def _describe_best_evaluations(run: Run) -> str:
    best = run.result.get("best")
    texts = [
        f"{name} {format_value(record.get(name))} at step {format_value(record.get('step'))}"
        for name, record in (best.items() if isinstance(best, dict) else ())
        if isinstance(record, dict)
    ]
    return f" Best evaluations: {', '.join(texts)}." if texts else ""


def _compare_losses(runs: Sequence[Run]) -> Iterator[str]:
    """Compare several runs by their loss, and warn that single runs do not rank methods."""
    finished = [run for run in runs if run.metrics]
    # Losses of different tasks or models say nothing about the runs.
    if any(_evaluated_task(run) != _evaluated_task(finished[0]) for run in finished):
        return
    split = next((s for s in ("test", "validation") if all(s in run.metrics for run in finished)), "")
    # Metrics come from files: a loss may be missing or not a number.
    losses = sorted((loss, run.name) for run in finished if is_finite(loss := run.metrics.get(split, {}).get("loss")))
    if len(losses) > 1:
        (lowest_loss, best_run), (second_loss, second_run) = losses[:2]
        yield (
            f"The lowest {split} loss is that of {best_run}, {format_number(lowest_loss)}, before {second_run}, "
            f"{format_number(second_loss)}. Single runs do not show which method is better: a study does, with the "
            "learning rate tuned for each method, and several seeds."
        )


def _evaluated_task(run: Run) -> list[object]:
    """Return the settings that runs must share for comparable losses: recipe, model and data for evaluation."""
    data = run.config.get("data")
    evaluated = {k: v for k, v in data.items() if k not in _TRAINING_DATA} if isinstance(data, dict) else data
    return [run.config.get("recipe"), run.config.get("model"), evaluated]


def _metric_table(runs: Sequence[Run]) -> ReportTable:
    columns = list(dict.fromkeys((s, m) for run in runs for s, values in run.metrics.items() for m in values))
    rows = tuple(
        (run.name, *(format_value(run.metrics.get(split, {}).get(metric)) for split, metric in columns))
        for run in runs
        if run.metrics
    )
    names = tuple(f"{split} {metric.replace('_', ' ')}" for split, metric in columns)
    return ReportTable("At the end of training", ("run", *names), rows)


def _confusion_charts(runs: Sequence[Run]) -> Iterator[Heatmap]:
    for number, run in enumerate(runs, start=1):
        counts = count_predictions(run)
        title = "Labels and predictions" + (f", {run.name}" if len(runs) > 1 else "")
        chart = confusion_chart(*counts, name=f"confusion-{number}", title=title) if counts else None
        if chart is not None:
            yield chart


def _sample_table(run: Run) -> ReportTable:
    columns = ("prompt", "output", "references")
    rows = tuple(tuple(_sample_text(sample.get(key)) for key in columns) for sample in run.samples[:_MAX_SAMPLES])
    file = run.folder / "samples.jsonl"
    notes = (f"The first {len(rows)} of {len(run.samples):,}; the rest is in {file}.",)
    return ReportTable(
        f"Written by {run.name}", columns, rows, notes if len(run.samples) > len(rows) else (), wrapped=True
    )


def _sample_text(value: object) -> str:
    if value is None:
        return ""
    text = "\n".join(map(str, value)) if isinstance(value, list) else str(value)
    return shorten(text, _MAX_SAMPLE_CHARS)


def _cost_table(runs: Sequence[Run]) -> ReportTable:
    finished = [run for run in runs if run.result]
    used = [key for key in _COST_COLUMNS if any(key in run.result for run in finished)]
    columns: dict[str, list[str]] = {"run": [run.name for run in finished]}
    columns |= {_COST_COLUMNS[key]: [format_value(run.result.get(key), key) for run in finished] for key in used}
    forgetting = [_forgetting(run) for run in finished]
    notes: tuple[str, ...] = ()
    if any(text != "-" for text in forgetting):
        columns["forgetting"] = forgetting
        notes = ("Forgetting: rise of the loss on general text, nats per token.",)
    return ReportTable("Cost", tuple(columns), tuple(zip(*columns.values(), strict=True)), notes)


def _forgetting(run: Run) -> str:
    forgetting = run.result.get("forgetting")
    return format_value(forgetting.get("rise") if isinstance(forgetting, dict) else None)


def _instructions(runs: Sequence[Run]) -> list[Block]:
    runs = [run for run in runs if run.config]
    if not runs:
        return []
    configs = [Code(f"config.yaml of {run.name}", format_yaml(run.config), collapsed=True) for run in runs]
    text = "The folder of a run contains its complete configuration. With a new output folder, the run starts again."
    commands = "\n".join(
        f"ailora train {quote_argument(run.folder / 'config.yaml')} output=out/again"
        + (f"-{number}" if len(runs) > 1 else "")
        for number, run in enumerate(runs, start=1)
    )
    return [Paragraphs((text,)), Code("Commands", commands), *configs[:_MAX_CONFIGS]]
