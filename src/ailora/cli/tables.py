"""Tables for the terminal."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ailora.atomic_io import format_json
from ailora.formatting import (
    collapse_layer_index,
    escape_controls,
    format_bytes,
    format_duration,
    format_lr,
    format_number,
    format_value,
)

# Imported only for type checkers, because a command must not load packages that only other commands need.
if TYPE_CHECKING:
    from ailora.checkpoints import Verdict
    from ailora.optim.curvature import Curvature, RateMultiple
    from ailora.plan import Plan, PlannedAdapter
    from ailora.recipes.dry_run import DryRun
    from ailora.recipes.suggest_lr import RoleRate, Suggestion
    from ailora.roles import Projection, UnmatchedModule
    from ailora.studies.summary_table import SummaryTable
    from ailora.tune.tune_result import TuneResult


class _EscapingConsole(Console):
    """Console that escapes control characters, because text may come from untrusted models, data and studies."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(escape_controls(text), **options)


#: Console of all commands. A pipe has no width; 160 columns are enough for module names. Markup is off, because the
#: names of fused projections contain brackets.
console = _EscapingConsole(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False, highlight=False)


def print_json(value: object) -> None:
    """Print plain data as JSON, in a single line."""
    print(format_json(value))


def print_line(text: str) -> None:
    """Print text without line breaks at the width of the terminal, so that paths and commands can be copied."""
    console.print(text, soft_wrap=True)


def print_report(title: str, report: Mapping[str, object], *, as_json: bool) -> None:
    """Print the results of a command as JSON, or as a table with a line for each result."""
    if as_json:
        print_json(report)
    else:
        console.print(_make_key_value_table(title, report))


def make_table(title: str | None, columns: Iterable[str], rows: Iterable[Iterable[str]], **options: Any) -> Table:
    """Build a table with a left-aligned title.

    Args:
        title: Title of the table, or None.
        columns: Names of the columns.
        rows: Cells of each row.
        **options: Further arguments of `rich.table.Table`.

    Returns:
        The table.
    """
    table = Table(*columns, title=title, title_justify="left", **options)
    for row in rows:
        table.add_row(*row)
    # By default, a path or a name that is wider than its column is cut.
    for column in table.columns:
        column.overflow = "fold"
    return table


def _make_key_value_table(title: str, values: Mapping[str, object]) -> Table:
    rows = ((key.replace("_", " "), format_value(value, key)) for key, value in values.items())
    return make_table(title, (), rows, show_header=False)


def _count_equal(rows: Iterable[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Yield each distinct row once, followed by the number of its occurrences."""
    return ((*row, str(count)) for row, count in Counter(rows).items())


def projection_table(projections: Iterable[Projection]) -> Table:
    """Build a table of projections. Layers with equal projections share a line."""

    def row(p: Projection) -> tuple[str, ...]:
        attention = p.attention.value if p.attention else ""
        return (
            p.role.value,
            attention,
            collapse_layer_index(p.module),
            _format_rows(p),
            _format_shape(p),
            p.dtype,
            p.layout,
            p.rule,
        )

    columns = ("role", "attention", "module", "rows", "shape", "dtype", "layout", "decided by", "modules")
    return make_table("projections", columns, _count_equal(map(row, projections)))


def unmatched_table(modules: Iterable[UnmatchedModule]) -> Table:
    """Build a table of linear modules without a role. Layers with equal modules share a line."""
    rows = ((collapse_layer_index(m.module), " x ".join(map(str, m.shape or ())), m.reason) for m in modules)
    return make_table("modules without a role", ("module", "shape", "reason", "modules"), _count_equal(rows))


def _format_rows(projection: Projection) -> str:
    """Format the rows of a projection as ranges of first and last rows, or as "all" if the weight is not fused."""
    ranges = [f"{start}-{stop - 1}" for start, stop in projection.rows]
    shown = ranges if len(ranges) <= 3 else [*ranges[:2], "...", ranges[-1]]
    return ", ".join(shown) if projection.fused else "all"


def _format_shape(projection: Projection) -> str:
    return f"{projection.out_features} x {projection.in_features}"


def plan_table(plan: Plan) -> Table:
    """Build a table of adapter settings, with totals. Layers with equal settings share a line."""

    def row(a: PlannedAdapter) -> tuple[str, ...]:
        p = a.projection
        # Name of the init and its settings, such as `minor, singular`.
        init = ", ".join(a.init.to_dict().values())
        numbers = (str(a.rank), f"{a.alpha:g}", f"{a.scaling:g}", f"{a.trainable:,}")
        return collapse_layer_index(p.module), p.role.value, _format_shape(p), init, *numbers

    columns = ("module", "role", "shape", "init", "r", "alpha", "s", "trainable each", "modules")
    table = make_table(None, columns, _count_equal(map(row, plan.adapters)), show_footer=True)
    table.columns[0].footer = f"{plan.policy.name}, {plan.form} form, file {format_bytes(plan.file_bytes)}"
    table.columns[-2].footer = f"{plan.trainable:,} in total"
    table.columns[-1].footer = str(len(plan.adapters))
    return table


def print_dry_run(dry_run: DryRun) -> None:
    """Print the plan, the cost and the first rows of a run."""
    if dry_run.plan is not None:
        console.print(plan_table(dry_run.plan))
    print_report("estimates", dry_run.facts, as_json=False)
    for number, example in enumerate(dry_run.examples, start=1):
        console.print(f"row {number}; the tokens in [[ ]] count in the loss:", example, sep="\n")


def result_table(results: Mapping[str, dict[str, Any]]) -> Table:
    """Build a table that compares runs: metrics on every split, trainable parameters, steps, time."""
    splits = next(iter(results.values()))["metrics"]
    split_metrics = [(split, metric) for split, metrics in splits.items() for metric in metrics]

    def row(name: str, result: dict[str, Any]) -> tuple[str, ...]:
        # The last entry of `best` is the main metric of the task, or the loss if the task has no metric.
        main_metric, best = list(result["best"].items())[-1]
        return (
            name,
            *(format_number(result["metrics"][split][metric]) for split, metric in split_metrics),
            f"{format_number(best[main_metric])} at {best['step']}" if best else "",
            format_value(result["trainable_parameters"]),
            str(result["steps"]),
            format_duration(result["train_seconds"]),
        )

    columns = ("run", *(f"{split} {metric}" for split, metric in split_metrics), "best", "trainable", "steps", "time")
    return make_table(None, columns, (row(*item) for item in results.items()))


def suggestion_table(suggestion: Suggestion) -> Table:
    """Build a table with the curvature and the suggested learning rate of each role."""
    columns = ("role", "curvature", "curvature of LoRA", "multiple of LoRA's rate", "rate", "caution")

    def row(role: str, r: RoleRate) -> tuple[str, ...]:
        estimates = map(_format_with_error, (r.curvature, r.reference, r.multiple))
        return role, *estimates, f"{r.rate:.2g}", r.caution

    rows = (row(*item) for item in suggestion.roles.items())
    return make_table(None, columns, rows)


def _format_with_error(estimate: Curvature | RateMultiple) -> str:
    return f"{estimate.value:.3g} ± {estimate.error:.1g}"


def error_table(errors: Mapping[str, tuple[float, float]]) -> Table:
    """Build a table of export errors: for each module name, the layer with the largest relative error.

    Args:
        errors: Module -> norm of the error, norm of the exact update.

    Returns:
        The table.
    """
    by_name: dict[str, list[tuple[float, float]]] = {}
    for module, pair in errors.items():
        by_name.setdefault(collapse_layer_index(module), []).append(pair)

    def row(name: str, pairs: list[tuple[float, float]]) -> tuple[str, ...]:
        error, norm = max(pairs, key=lambda pair: pair[0] / pair[1] if pair[1] else 0.0)
        return name, f"{norm:.4g}", f"{error:.2e}", f"{error / norm:.2e}" if norm else "0", str(len(pairs))

    columns = ("module", "update |dW|", "error", "relative error", "modules")
    return make_table("largest relative error over the layers", columns, (row(*item) for item in by_name.items()))


def check_table(verdict: Verdict) -> Table:
    """Build a table of the checks of an adapter, with their results."""
    words = {True: "passed", False: "FAILED", None: "not applicable"}
    rows = ((check.name, words[check.passed], check.detail) for check in verdict.checks)
    return make_table(f"{verdict.adapter} on {verdict.base}", ("check", "result", "details"), rows)


def inspection_tables(inspection: Mapping[str, Any]) -> Iterator[Table]:
    """Yield a table with the results of `ailora inspect`, then a table with a line for each role."""
    # The rows for roles are under `lines` for an adapter, and under `roles` for a model.
    roles = inspection.get("lines") or inspection["roles"]
    shown_elsewhere = ("kind", "folder", "lines", "roles")
    facts = {
        key: value for key, value in inspection.items() if key not in shown_elsewhere and value not in (None, [], {})
    }
    yield _make_key_value_table(f"{inspection['kind']} {inspection['folder']}", facts)
    title = "by role" if "roles" in inspection else "by role, root mean square over its modules"
    columns = [_COLUMN_NAMES.get(key, key) for key in map(str, roles[0])]
    rows = (("" if value is None else format_value(value) for value in role.values()) for role in roles)
    yield make_table(title, columns, rows)


#: Field of `RoleSummary` -> name of its column.
_COLUMN_NAMES: dict[str, str] = {
    "scaling": "s",
    "anchor": "|s B0 A0|",
    "update": "|dW|",
    "moved_A": "|dA|/|A0|",
    "moved_B": "|dB|/|B0|",
    "stable_rank": "stable rank of dW",
    "values": "largest values of dW",
}


def summary_table(summary: SummaryTable) -> Table:
    """Render a table from the summary of a study."""
    return make_table(summary.title, summary.columns, summary.rows, caption=" ".join(summary.notes) or None)


def tune_table(result: TuneResult) -> Table:
    """Build a table of a search's candidates, from best to worst, with the metric at the end of each reached rung."""
    steps = [step for step, _ in result.rungs]
    failed = any(candidate.error for candidate in result.candidates)
    rows = (
        (
            c.policy,
            c.roles if isinstance(c.roles, str) else ", ".join(c.roles),
            str(c.rank),
            format_lr(c.learning_rate),
            *(format_number(c.values[step]) if step in c.values else "" for step in steps),
            *([c.error or ""] if failed else []),
        )
        for c in result.candidates
    )
    columns = (
        "init",
        "roles",
        "rank",
        "learning rate",
        *(f"{result.ranking_metrics[step]}, step {step:,}" for step in steps),
        *(["error"] if failed else []),
    )
    return make_table("validation data", columns, rows)
