"""Runs as a part of a page: one alone, or several beside each other."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from ailora.formatting import (
    format_duration,
    format_lr,
    format_number,
    format_value,
    is_finite,
    pluralize,
    shorten,
)
from ailora.plots.chart_spec import Heatmap
from ailora.plots.run_charts import confusion_chart, training_curves, validation_curves
from ailora.recipes.config.yaml_file import format_yaml
from ailora.report.document import Block, Charts, Code, Facts, Note, Part, Table, Words, section, sections
from ailora.report.report_settings import flattened, settings
from ailora.report.run_reader import Run, confusion

_MOST_SAMPLES = 20
_LONGEST = 1500
_COST = {
    "trainable_parameters": "trainable parameters",
    "total_parameters": "all parameters",
    "steps": "steps",
    "init_seconds": "to load and adapt",
    "train_seconds": "training",
    "peak_memory_bytes": "peak memory",
    "adapter_bytes": "adapter file",
}


def run_part(runs: Sequence[Run]) -> Part:
    """One run, or several beside each other.

    Args:
        runs: from `read_run`, with different names.
    """
    curves = (
        *validation_curves({run.name: run.history for run in runs}),
        *training_curves({run.name: run.log for run in runs}),
    )
    return Part(
        title=runs[0].name if len(runs) == 1 else pluralize(len(runs), "run"),
        sort="run" if len(runs) == 1 else "runs",
        sections=sections(
            section("Summary", *_summary(runs)),
            section("Curves", Charts(curves)),
            section("Metrics", _metrics(runs), Charts(tuple(_confusion_charts(runs)))),
            section("Samples", *_samples(runs)),
            section("Cost", _costs(runs)),
            section("Settings", *settings({(run.name,): _own(run) for run in runs if run.config}, ("run",))),
            section("Versions", _versions(runs)),
            section("Run it again", *_again(runs)),
        ),
    )


def _summary(runs: Sequence[Run]) -> list[Block]:
    several = len(runs) > 1
    notes: list[Block] = [
        Note(f"{run.name}: {note}" if several else note, "note" if run.result else "error")
        for run in runs
        for note in run.notes
    ]
    facts = () if several else tuple(_facts(runs[0]).items())
    return [*notes, Facts(facts), Words(tuple(map(_told, runs)), listed=several), Words(tuple(_compared(runs)))]


def _facts(run: Run) -> dict[str, str]:
    config = flattened(run.config)
    facts = {
        "policy": format_value(config.get("adapter.policy")),
        "rank": format_value(config.get("adapter.rank")),
        "learning rate": format_lr(config.get("training.learning_rate")),
        "seed": format_value(config.get("training.seed")),
        "steps": format_value(run.result.get("steps")),
        "training": format_duration(run.result.get("train_seconds")),
    }
    return {key: text for key, text in facts.items() if text != "-"}


def _told(run: Run) -> str:
    """A run in a sentence."""
    policy = flattened(run.config).get("adapter.policy")
    who = (
        f"{run.name} ({format_value(policy)})" if policy is not None and format_value(policy) != run.name else run.name
    )
    if not run.metrics:
        step = max((one["step"] for one in run.log if is_finite(one.get("step"))), default=None)
        return f"{who} has no result yet" + (f"; its last logged step is {step:,}." if step is not None else ".")
    scores = "; ".join(
        f"{split} {', '.join(f'{name} {format_value(value)}' for name, value in values.items())}"
        for split, values in run.metrics.items()
    )
    best = _best(run)
    return f"{who}: {scores}." + (f" {best}" if best else "")


def _best(run: Run) -> str:
    found = run.result.get("best")
    told = [
        f"{name} {format_value(record.get(name))} at step {format_value(record.get('step'))}"
        for name, record in (found.items() if isinstance(found, dict) else ())
        if isinstance(record, dict)
    ]
    return f"Best evaluations: {', '.join(told)}." if told else ""


def _compared(runs: Sequence[Run]) -> list[str]:
    """What several runs say together, which is little."""
    finished = [run for run in runs if run.metrics]
    if len(finished) < 2:
        return []
    splits = [split for split in ("test", "validation") if all(split in run.metrics for run in finished)]
    losses = [(run, run.metrics[splits[0]].get("loss")) for run in finished] if splits else []
    sound = sorted((float(loss), run.name) for run, loss in losses if is_finite(loss) and loss is not None)
    if len(sound) < 2:
        return []
    (lowest, first), (second, next_one) = sound[:2]
    return [
        f"The lowest {splits[0]} loss is that of {first}, {format_number(lowest)}, before {next_one}, "
        f"{format_number(second)}. One run each does not say which method is better: a study does, with the learning "
        "rate tuned for each and several seeds."
    ]


def _metrics(runs: Sequence[Run]) -> Table:
    columns = list(dict.fromkeys((s, m) for run in runs for s, values in run.metrics.items() for m in values))
    rows = tuple(
        (run.name, *(format_value(run.metrics.get(split, {}).get(metric)) for split, metric in columns))
        for run in runs
        if run.metrics
    )
    heads = tuple(f"{split} {metric.replace('_', ' ')}" for split, metric in columns)
    return Table("At the end of training", ("run", *heads), rows)


def _confusion_charts(runs: Sequence[Run]) -> Iterator[Heatmap]:
    for number, run in enumerate(runs, start=1):
        title = "Labels and predictions" + (f", {run.name}" if len(runs) > 1 else "")
        found = confusion(run)
        if (
            found is not None
            and (chart := confusion_chart(*found, name=f"confusion-{number}", title=title)) is not None
        ):
            yield chart


def _samples(runs: Sequence[Run]) -> list[Block]:
    made: list[Block] = []
    for run in (run for run in runs if run.samples):
        cells = [tuple(_text(one.get(key)) for key in ("prompt", "output", "references")) for one in run.samples]
        few = tuple(cells[:_MOST_SAMPLES])
        notes = (f"The first {len(few)} of {len(cells):,}; the rest is in {run.folder / 'samples.jsonl'}.",)
        title = f"Written by {run.name}"
        heads = ("prompt", "output", "references")
        made.append(Table(title, heads, few, notes if len(cells) > len(few) else (), wrapped=True))
    return made


def _text(value: Any) -> str:
    said = "\n".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
    return shorten(said, _LONGEST)


def _costs(runs: Sequence[Run]) -> Table:
    used = [key for key in _COST if any(key in run.result for run in runs)]
    finished = [run for run in runs if run.result]
    rows = tuple((run.name, *(format_value(run.result.get(key), key) for key in used)) for run in finished)
    columns = ("run", *(_COST[key] for key in used))
    if all(_forgetting(run) == "-" for run in finished):
        return Table("Cost", columns, rows)
    rows = tuple((*row, _forgetting(run)) for row, run in zip(rows, finished, strict=True))
    notes = ("Forgetting: rise of the loss on general text, nats per token.",)
    return Table("Cost", (*columns, "forgetting"), rows, notes)


def _forgetting(run: Run) -> str:
    found = run.result.get("forgetting")
    return format_value(found.get("rise")) if isinstance(found, dict) else "-"


def _own(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.config.items() if key != "output"}


def _versions(runs: Sequence[Run]) -> Table:
    found = {run.name: run.result.get("versions") for run in runs}
    known = {name: versions for name, versions in found.items() if isinstance(versions, dict)}
    libraries = dict.fromkeys(library for versions in known.values() for library in versions)
    rows = tuple((library, *(format_value(v.get(library)) for v in known.values())) for library in libraries)
    heads = tuple(known) if len(runs) > 1 else ("version",)
    return Table("Libraries that trained", ("library", *heads), rows)


def _again(runs: Sequence[Run]) -> list[Block]:
    if not any(run.config for run in runs):
        return []
    text = "Every run's folder holds its whole configuration. With another output the run starts anew."
    commands = "\n".join(
        f"ailora train {shlex.quote(str(run.folder / 'config.yaml'))} output=out/again"
        + (f"-{number}" if len(runs) > 1 else "")
        for number, run in enumerate(runs, start=1)
    )
    files = [Code(f"config.yaml of {run.name}", format_yaml(run.config), collapsed=True) for run in runs if run.config]
    return [Words((text,)), Code("Commands", commands), *files[:8]]
