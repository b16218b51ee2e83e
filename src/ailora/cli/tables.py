"""Tables for the terminal."""

from __future__ import annotations

import json as json_module
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ailora.formatting import format_bytes, format_duration, format_number, format_value
from ailora.roles import collapse_layer_index

# Types only: a command pays for its own packages, not for those of all tables.
if TYPE_CHECKING:
    from ailora.checkpoints import Verdict
    from ailora.plan import Plan, PlannedAdapter
    from ailora.recipes.dry_run import DryRun
    from ailora.recipes.suggest_lr import Suggestion
    from ailora.roles import Projection, UnmatchedModule
    from ailora.studies.summary import SummaryTable

#: A pipe has no width of its own; names of modules should not be cut there.
#: What stands in brackets, as the role of a fused weight does, is text and no markup.
console = Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False)


def projection_table(projections: Iterable[Projection]) -> Table:
    """The projections, equal ones of repeated layers folded into one line."""
    rows = (
        (
            p.role.value,
            p.attention.value if p.attention else "",
            collapse_layer_index(p.module),
            _rows(p),
            _shape(p),
            p.dtype,
            p.layout,
            p.rule,
        )
        for p in projections
    )
    columns = ("role", "attention", "module", "rows", "shape", "dtype", "layout", "decided by", "modules")
    return _folded_table("projections", columns, rows)


def rest_table(rest: Iterable[UnmatchedModule]) -> Table:
    """The linear modules without a role, equal ones of repeated layers folded into one line."""
    rows = ((collapse_layer_index(r.module), " x ".join(map(str, r.shape or ())), r.reason) for r in rest)
    return _folded_table("left alone", ("module", "shape", "why", "modules"), rows)


def summary_table(summary: SummaryTable) -> Table:
    """Render a table of a study's summary."""
    caption = " ".join(summary.notes) or None
    table = Table(*summary.columns, title=summary.title, title_justify="left", caption=caption)
    for row in summary.rows:
        table.add_row(*row)
    return table


def _folded_table(title: str, columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Table:
    """A table of rows, each once, with their number in the last column."""
    table = Table(*columns, title=title, title_justify="left")
    for row, count in Counter(rows).items():
        table.add_row(*row, str(count))
    return table


def _rows(projection: Projection) -> str:
    """The rows of a projection in its module's weight, from the first to the last of each range."""
    ranges = [f"{start}-{stop - 1}" for start, stop in projection.rows]
    shown = ranges if len(ranges) <= 3 else [*ranges[:2], "...", ranges[-1]]
    return ", ".join(shown) if projection.fused else "all"


def plan_table(plan: Plan) -> Table:
    """What the adapted projections get, equal ones of repeated layers folded into one line, and the totals."""

    def row(a: PlannedAdapter) -> tuple[str, ...]:
        start = ", ".join(a.init.to_dict().values())
        numbers = (str(a.rank), f"{a.alpha:g}", f"{a.scaling:g}", f"{a.trainable:,}")
        return (
            collapse_layer_index(a.projection.module),
            a.projection.role.value,
            _shape(a.projection),
            start,
            *numbers,
        )

    table = Table("module", "role", "shape", "start", "r", "alpha", "s", "trains each", "modules", show_footer=True)
    for cells, count in Counter(map(row, plan.adapters)).items():
        table.add_row(*cells, str(count))
    table.columns[0].footer = f"{plan.policy.name}, {plan.form} form, file {format_bytes(plan.file_bytes)}"
    table.columns[-2].footer = f"{plan.trainable:,} in all"
    table.columns[-1].footer = str(len(plan.adapters))
    return table


def _shape(projection: Projection) -> str:
    return f"{projection.out_features} x {projection.in_features}"


def result_table(results: Mapping[str, dict[str, Any]]) -> Table:
    """One line per run: its metrics on every split, what it trained, and how long."""
    first = next(iter(results.values()))
    scored = [(split, metric) for split, metrics in first["metrics"].items() for metric in metrics]
    table = Table("run", *(f"{split} {metric}" for split, metric in scored), "best", "trains", "steps", "time")
    for name, result in results.items():
        deciding = list(result["best"])[-1]
        best = result["best"][deciding]
        table.add_row(
            name,
            *(format_number(result["metrics"][split][metric]) for split, metric in scored),
            f"{format_number(best[deciding])} at {best['step']}" if best else "",
            format_value(result["trainable_parameters"]),
            str(result["steps"]),
            format_duration(result["train_seconds"]),
        )
    return table


def print_report(title: str, report: Mapping[str, Any], *, json: bool) -> None:
    """What a command did: as JSON, or as one line per figure."""
    if json:
        print(json_module.dumps(report))
        return
    table = Table(title=title, title_justify="left", show_header=False)
    for key, value in report.items():
        table.add_row(key.replace("_", " "), format_value(value, key))
    console.print(table)


def print_dry_run(made: DryRun) -> None:
    """What a run would do: its plan, its cost, its first rows."""
    if made.plan is not None:
        console.print(plan_table(made.plan))
    print_report("estimates", made.facts, json=False)
    for number, example in enumerate(made.examples, start=1):
        console.print(f"row {number}, the loss counts what stands in [[ ]]:", example, sep="\n")


def suggestion_table(made: Suggestion) -> Table:
    """The curvature of each role, and the rate that it suggests."""
    table = Table("role", "curvature", "at LoRA's start", "multiple of LoRA's rate", "rate", "caution")
    for role, each in made.roles.items():
        table.add_row(
            role,
            _with_error(each.curvature.value, each.curvature.error),
            _with_error(each.reference.value, each.reference.error),
            _with_error(each.multiple.value, each.multiple.error),
            f"{each.rate:.2g}",
            each.caution,
        )
    return table


def _with_error(value: float, error: float) -> str:
    return f"{value:.3g} ± {error:.1g}"


def error_table(errors: Mapping[str, tuple[float, float]]) -> Table:
    """What an export lost, module by module, layers folded: the worst of each."""
    table = Table("module", "update |dW|", "lost", "share", "modules", title="the worst module of each kind")
    worst: dict[str, list[tuple[float, float]]] = {}
    for module, pair in errors.items():
        worst.setdefault(collapse_layer_index(module), []).append(pair)
    for name, pairs in worst.items():
        lost, whole = max(pairs, key=lambda pair: pair[0] / pair[1] if pair[1] else 0.0)
        share = f"{lost / whole:.2e}" if whole else "0"
        table.add_row(name, f"{whole:.4g}", f"{lost:.2e}", share, str(len(pairs)))
    return table


def check_table(verdict: Verdict) -> Table:
    """The checks of an adapter, and what they found."""
    words = {True: "passed", False: "FAILED", None: "not applicable"}
    title = f"{verdict.adapter} on {verdict.base}"
    table = Table("check", "result", "what was found", title=title, title_justify="left")
    for check in verdict.checks:
        table.add_row(check.name, words[check.passed], check.detail)
    return table


def inspection_tables(found: Mapping[str, Any]) -> Iterator[Table]:
    """What `inspect` found: the facts, then a line for each role."""
    lines = found.get("lines") or found["roles"]
    facts = Table(title=f"{found['kind']} {found['folder']}", title_justify="left", show_header=False)
    for key, value in found.items():
        if key not in ("kind", "folder", "lines", "roles") and value not in (None, [], {}):
            facts.add_row(key.replace("_", " "), format_value(value, key))
    yield facts
    title = "by role" if "roles" in found else "by role, root mean square over its modules"
    heads = [str(_HEADS.get(key, key)) for key in lines[0]]
    table = Table(*heads, title=title, title_justify="left")
    for line in lines:
        table.add_row(*("" if value is None else format_value(value) for value in line.values()))
    yield table


_HEADS: dict[str, str] = {
    "scaling": "s",
    "anchor": "|s B0 A0|",
    "update": "|dW|",
    "moved_A": "|dA|/|A0|",
    "moved_B": "|dB|/|B0|",
    "stable_rank": "stable rank of dW",
    "values": "largest values of dW",
}
