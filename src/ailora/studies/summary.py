"""A comparison in words and tables, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ailora.formatting import format_interval, format_lr, format_number, join_names, pluralize
from ailora.studies.comparison import Compared, Comparison
from ailora.studies.conditions import ONLY_TASK, Group
from ailora.studies.method_results import Measured, report_split
from ailora.studies.statistics import Estimate, Verdict
from ailora.studies.time_to_loss import Speed

_NOTHING = "-"
#: What one method, and what several do to the baseline.
_WORDS = {
    Verdict.WIN: ("beats", "beat"),
    Verdict.LOSS: ("loses to", "lose to"),
    Verdict.TIE: ("ties with", "tie with"),
    None: ("has no seed in common with", "have no seed in common with"),
}


@dataclass(frozen=True)
class TextTable:
    """A table of texts.

    Attributes:
        title: what it shows.
        columns: their heads.
        rows: a text for each column.
        notes: what a reader needs to know, below it.
        topic: what it is about: scores, ranks, rates, speed, cost or failures.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    topic: str = ""

    def markdown(self) -> str:
        """As Markdown."""
        lines = [f"### {self.title}", "", *map(_line, [self.columns, ["---"] * len(self.columns), *self.rows])]
        return "\n".join([*lines, "", *(f"{note}\n" for note in self.notes)])


def markdown(found: Comparison, *, title: str) -> str:
    """The whole report as Markdown."""
    said = "\n".join(f"- {sentence}" for sentence in summary(found))
    return "\n".join([f"## {title}", "", said, "", *(table.markdown() for table in tables(found))])


def summary(found: Comparison) -> list[str]:
    """Who wins, ties and loses, a sentence for each task and point, and what is missing."""
    grid = found.grid
    sentences = []
    for base, here in found.places:
        by_verdict: dict[Verdict | None, list[str]] = {}
        for g in here:
            by_verdict.setdefault(found.compared[g].verdict, []).append(beside(found, g, base))
        score = found.measured[base].score
        where = f"On {place_of(found, base)}" if place_of(found, base) else "Here"
        told = [
            f"{join_names(by_verdict[one])} {word if len(by_verdict[one]) == 1 else words}"
            for one, (word, words) in _WORDS.items()
            if one in by_verdict
        ]
        said = "; ".join(told) or "nothing is compared with"
        at = (
            ""
            if score is None
            else f" ({grid.metric_of(base)} {interval(score)} on the {report_split(grid, base)} split)"
        )
        sentences.append(f"{where}, {said} the baseline {grid.baseline}{at}.")
    sentences.append(
        "A win or loss needs at least 5 seeds in common, a 95 % t-interval of the paired difference that excludes 0, "
        f"and p below 0.05 after Holm's correction over a family of {found.family} comparisons; all else is "
        "a tie, which does not mean that methods are equal."
    )
    lost = [(m.failed, m.pruned, m.open) for m in found.measured.values()]
    failed, pruned, still = (sum(numbers) for numbers in zip(*lost, strict=True))
    sentences.append(
        f"{sum(m.ended for m in found.measured.values())} trials are done, {failed} failed, {pruned} were pruned, "
        f"{still} are not run yet."
    )
    return sentences


def tables(found: Comparison) -> list[TextTable]:
    """Scores, learning rates, speed, cost and failures."""
    made = [_scores(found), *_curves(found), _ranges(found), _speeds(found), _costs(found), _failures(found)]
    if found.ranks:
        ordered = sorted(found.ranks.items(), key=lambda item: item[1])
        made.insert(
            1, TextTable("Average rank", ["method", "rank"], [[m, f"{rank:.2f}"] for m, rank in ordered], topic="ranks")
        )
    return [table for table in made if table.rows]


def _scores(found: Comparison) -> TextTable:
    grid = found.grid
    rows = []
    for group, measured in found.measured.items():
        compared = found.compared.get(group)
        row = [
            place_of(found, group),
            group.method,
            format_lr(measured.progress.best) + ("" if measured.progress.ended else " (not final)"),
            str(len(measured.at_best)),
            _NOTHING if measured.score is None else interval(measured.score),
        ]
        if compared is None:
            rows.append([*row, "baseline", "", "", ""])
            continue
        difference = compared.difference
        boot = compared.bootstrap
        rows.append(
            [
                *row,
                _NOTHING if difference is None else interval(difference.estimate, "+"),
                _NOTHING if boot is None else f"[{boot.low:+.4f}, {boot.high:+.4f}]",
                _NOTHING if compared.adjusted_p is None else f"{compared.adjusted_p:.3f}",
                compared.verdict or _NOTHING,
            ]
        )
    metrics = sorted({f"{grid.metric_of(group)} ({report_split(grid, group)})" for group in found.measured})
    columns = ["on", "method", "best rate", "seeds", "score", "minus baseline", "bootstrap", "Holm p", "verdict"]
    notes = [
        f"Score: mean over seeds of {', '.join(metrics)}, with its 95 % t-interval, at the learning rate that is best "
        "on the validation split. Minus baseline: paired by seed. Bootstrap: 95 % over seeds and examples, where "
        "predictions are kept; with few seeds it is too narrow."
    ]
    return TextTable("Scores", columns, rows, notes, "scores")


def _curves(found: Comparison) -> Iterable[TextTable]:
    for base, others in found.places:
        here = {group: found.measured[group] for group in (base, *others)}
        rates = sorted({rate for measured in here.values() for rate in measured.curve})
        rows = [[format_lr(rate), *(_at(measured, rate) for measured in here.values())] for rate in rates]
        place = place_of(found, base)
        metric = found.grid.metric_of(base)
        yield TextTable(
            f"Validation {metric} over learning rate" + (f", {place}" if place else ""),
            ["learning rate", *(beside(found, group, base) for group in here)],
            rows,
            ["Mean over seeds, their number in brackets; * the best rate."],
            "rates",
        )


def _at(measured: Measured, rate: float) -> str:
    if rate not in measured.curve:
        return ""
    one = measured.curve[rate]
    return f"{format_number(one.mean)} ({one.n})" + (" *" if rate == measured.progress.best else "")


def _ranges(found: Comparison) -> TextTable:
    rows = [
        [
            place_of(found, g),
            g.method,
            format_lr(m.good.low),
            format_lr(m.good.peak),
            format_lr(m.good.high),
            f"{m.good.decades:.1f}",
        ]
        for g, m in found.measured.items()
        if m.good is not None
    ]
    notes = ["Rates around the peak whose mean is within a point, or two standard errors, of the peak's."]
    return TextTable("Good learning rates", ["on", "method", "from", "peak", "to", "decades"], rows, notes, "rates")


def _speeds(found: Comparison) -> TextTable:
    rows = []
    for group, compared in found.compared.items():
        if (speed := compared.speed) is None:
            continue
        count = sum(one.step is not None for one in speed.reached.values())
        rows.append(
            [
                place_of(found, group),
                group.method,
                f"{count} of {len(speed.reached)}",
                _share(speed),
                _NOTHING if speed.seconds is None else f"{speed.seconds:.0f}",
                {None: "not run", True: "yes", False: "no"}[speed.confirmed],
            ]
        )
    columns = ["on", "method", "seeds that reach it", "share of steps", "seconds", "confirmed"]
    notes = [
        "When a run first has the final validation loss of the baseline's run with the same seed, seen at its "
        "evaluations; medians over the seeds that reach it. Confirmed: runs whose schedule ends there reach it too."
    ]
    return TextTable("Steps to the baseline's final loss", columns, rows, notes, "speed")


def _share(speed: Speed) -> str:
    return "not reached" if speed.share is None else f"{speed.share:.2f}"


def _costs(found: Comparison) -> TextTable:
    rows = []
    for group, measured in found.measured.items():
        if not measured.at_best:
            continue
        rows.append(
            [
                place_of(found, group),
                group.method,
                _number(measured.mean("trainable_parameters"), lambda n: f"{n:,.0f}"),
                _number(measured.mean("init_seconds"), lambda n: f"{n:.2f}"),
                _number(measured.step_milliseconds, lambda n: f"{n:.0f}"),
                _number(measured.mean("peak_memory_bytes"), lambda n: f"{n / 2**20:,.0f}"),
                _number(measured.mean("adapter_bytes"), lambda n: f"{n / 2**10:,.0f}"),
                _number(measured.forgetting, lambda n: f"{n:+.3f}"),
            ]
        )
    columns = ["on", "method", "trained", "init s", "ms a step", "peak MiB", "adapter KiB", "forgetting"]
    notes = [
        "Means at the best rate. Init: loading the model included. A step: evaluations during training included. "
        "Forgetting: rise of the loss on general text, nats per token."
    ]
    return TextTable("Cost", columns, rows, notes, "cost")


def _failures(found: Comparison) -> TextTable:
    rows = [
        [place_of(found, group), group.method, " ".join(error.split())[:200]]
        for group, measured in found.measured.items()
        for error in measured.errors
    ]
    return TextTable("Failed trials", ["on", "method", "learning rate, seed: error"], rows, topic="failures")


def beside(found: Comparison, group: Group, base: Group) -> str:
    """A method beside a baseline, with its point where the baseline is at none, or at another one."""
    return group.method if {*group.point} <= {*base.point} else f"{group.method} ({found.grid.point_of(group)})"


def place_of(found: Comparison, group: Group) -> str:
    """A group's task and point in words; empty where the study has but one."""
    task = "" if group.task == ONLY_TASK else group.task
    return ", ".join(part for part in (task, found.grid.point_of(group)) if part)


def interval(one: Estimate, sign: str = "") -> str:
    """A mean with its 95 % interval, where it has one."""
    return format_interval(one.mean, one.low, one.high, sign)


def seeds_words(measured: Measured) -> str:
    """How many seeds a score is of, and what each of them had."""
    return pluralize(len(measured.at_best), "seed")


def difference_words(compared: Compared) -> str:
    """A comparison with the baseline, in a line."""
    if compared.difference is None:
        return "no seed in common with the baseline"
    p = "" if compared.adjusted_p is None else f"; p {compared.adjusted_p:.3f} after Holm's correction"
    return f"{compared.verdict}; {pluralize(len(compared.difference.seeds), 'seed')}{p}"


def _number(value: float | None, text: Callable[[float], str]) -> str:
    return _NOTHING if value is None else text(value)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
