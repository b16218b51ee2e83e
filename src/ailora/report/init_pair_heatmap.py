"""Heatmaps of methods that are pairs of inits, one for the query and one for the value (the paper's Figure 4)."""

from __future__ import annotations

from collections.abc import Iterator

from ailora.formatting import format_number
from ailora.inits import Init, Kaiming, Size, Spectral
from ailora.plots.chart_spec import Heatmap
from ailora.recipes.config.method import Preset
from ailora.recipes.config.schema import AdapterConfig
from ailora.roles import Role, parse_role
from ailora.studies.comparison import Comparison
from ailora.studies.trial import Condition

_ORDER = ("frozen", "random", "principal", "minor")
#: Below this, a list of methods says more than a heatmap.
_MIN_PAIRS = 4


def init_pair(adapter: AdapterConfig) -> tuple[str, str] | None:
    """Return the inits of query and value in words, or None if the adapter is no such pair or adapts other roles."""
    method = adapter.method
    if not isinstance(method, Preset):
        return None
    policy = method.policy
    roles = set(policy.default_roles if adapter.roles is None else map(parse_role, adapter.roles))
    if not roles or roles - {Role.QUERY, Role.VALUE}:
        return None
    query, value = (_word(policy.init_for(role)) if role in roles else "frozen" for role in (Role.QUERY, Role.VALUE))
    return None if query is None or value is None else (query, value)


def init_pair_heatmaps(comparison: Comparison) -> Iterator[Heatmap]:
    """Draw a matrix of scores for each task and setting at which the methods are pairs of inits."""
    for base, _ in comparison.by_baseline():
        pairs = _pairs(comparison, base)
        rows = sorted({query for query, _ in pairs}, key=_rank)
        columns = sorted({value for _, value in pairs}, key=_rank)
        # A row or a column is no matrix, and one that is mostly empty says less than a list.
        if min(len(rows), len(columns)) < 2 or len(pairs) < max(_MIN_PAIRS, len(rows) * len(columns) / 2):
            continue
        metric = comparison.design.metric_label(base)
        conditions = [[pairs.get((row, column)) for column in columns] for row in rows]
        yield Heatmap(
            name="-".join(["query-value", *base.label.replace(",", "").split()]),
            title="Query start x value start" + (f", {base.label}" if base.label else ""),
            rows=tuple(rows),
            columns=tuple(columns),
            values=tuple(tuple(_score(comparison, c) for c in row) for row in conditions),
            row_label="query",
            column_label="value",
            unit=metric,
            caption=f"Mean {metric} over seeds at each pair's best learning rate; below it the verdict against "
            f"the baseline {base.method}. The paper's choice is query principal, value minor. "
            + _best(comparison, pairs),
            notes=tuple(tuple(_note(comparison, c) for c in row) for row in conditions),
        )


def _pairs(comparison: Comparison, base: Condition) -> dict[tuple[str, str], Condition]:
    """Map each pair to the first method that has it and differs from the baseline in nothing else."""
    design = comparison.design
    usual = _other_options(design.base_config(base).adapter)
    pairs: dict[tuple[str, str], Condition] = {}
    for condition in comparison.results:
        adapter = design.base_config(condition).adapter
        if design.baseline_for(condition) != base or _other_options(adapter) != usual:
            continue
        if (pair := init_pair(adapter)) is not None:
            pairs.setdefault(pair, condition)
    return pairs


def _other_options(adapter: AdapterConfig) -> dict[str, object]:
    """Options beside the inits and the rank, which may follow from an equal number of parameters."""
    return adapter.model_dump(exclude={"policy", "roles", "rank"})


def _best(comparison: Comparison, pairs: dict[tuple[str, str], Condition]) -> str:
    scored = {pair: score.mean for pair, c in pairs.items() if (score := comparison.results[c].score)}
    if not scored:
        return "No pair has a score yet."
    larger = comparison.design.larger_is_better(next(iter(pairs.values())))
    query, value = (max if larger else min)(scored, key=lambda pair: scored[pair])
    return f"The best mean is that of query {query}, value {value}: {format_number(scored[query, value])}."


def _score(comparison: Comparison, condition: Condition | None) -> float:
    score = comparison.results[condition].score if condition else None
    return float("nan") if score is None else score.mean


def _note(comparison: Comparison, condition: Condition | None) -> str:
    if condition is None:
        return ""
    if condition.method == comparison.design.baseline:
        return "baseline"
    return comparison.against_baseline[condition].verdict or ""


def _word(init: Init | None) -> str | None:
    """Return an init in the paper's words, or None if it has none for it."""
    match init:
        case None:
            return "frozen"
        case Kaiming():
            return "random"
        case Spectral():
            return init.band.value + ("" if init.size is Size.SINGULAR else f" ({init.size.value})")
        case _:
            return None


def _rank(word: str) -> tuple[int, str]:
    return (_ORDER.index(word) if word in _ORDER else len(_ORDER), word)
