"""Methods that are pairs of starts, one for the query and one for the value (the paper's Figure 4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ailora.formatting import format_number
from ailora.inits import Init, Kaiming, Size, Spectral
from ailora.plots.chart_spec import Heat
from ailora.recipes.config.method import Preset
from ailora.recipes.config.schema import AdapterConfig
from ailora.roles import Role, parse_role
from ailora.studies.comparison import Comparison
from ailora.studies.conditions import Group
from ailora.studies.method_results import report_split
from ailora.studies.summary import place_of

_ORDER = ("frozen", "random", "principal", "minor")
#: Below this it is no grid of pairs but a few methods.
_LEAST_PAIRS = 4


def pair_of(adapter: AdapterConfig) -> tuple[str, str] | None:
    """How query and value start, in words; None: the adapter is not such a pair, or adapts other roles too."""
    method = adapter.method
    if not isinstance(method, Preset):
        return None
    policy = method.policy
    roles = set(policy.default_roles if adapter.roles is None else map(parse_role, adapter.roles))
    if not roles or roles - {Role.QUERY, Role.VALUE}:
        return None
    query, value = (_word(policy.init_for(role)) if role in roles else "frozen" for role in (Role.QUERY, Role.VALUE))
    return None if query is None or value is None else (query, value)


def pair_charts(found: Comparison) -> Iterator[Heat]:
    """A matrix of scores for each task and point at which the methods are pairs of starts."""
    for base, _ in found.places:
        pairs = _pairs(found, base)
        rows = sorted({query for query, _ in pairs}, key=_rank)
        columns = sorted({value for _, value in pairs}, key=_rank)
        # A row or a column is no matrix, and one that is mostly empty says less than a list.
        if min(len(rows), len(columns)) < 2 or len(pairs) < max(_LEAST_PAIRS, len(rows) * len(columns) / 2):
            continue
        yield _chart(found, base, pairs, (rows, columns))


def _pairs(found: Comparison, base: Group) -> dict[tuple[str, str], Group]:
    """Pair -> the first method that is it; those that differ from the baseline in other settings too are none."""
    grid = found.grid
    usual = _besides(grid.base_of(base).adapter)
    pairs: dict[tuple[str, str], Group] = {}
    for group in found.measured:
        adapter = grid.base_of(group).adapter
        if grid.baseline_of(group) != base or _besides(adapter) != usual:
            continue
        if (pair := pair_of(adapter)) is not None:
            pairs.setdefault(pair, group)
    return pairs


def _besides(adapter: AdapterConfig) -> dict[str, Any]:
    """What else an adapter is. Its rank may follow from an equal number of parameters."""
    return adapter.model_dump(exclude={"policy", "roles", "rank"})


def _chart(
    found: Comparison, base: Group, pairs: dict[tuple[str, str], Group], names: tuple[list[str], list[str]]
) -> Heat:
    rows, columns = names
    place = place_of(found, base)
    metric = f"{found.grid.metric_of(base)} ({report_split(found.grid, base)})"
    at = [[pairs.get((row, column)) for column in columns] for row in rows]
    return Heat(
        name="-".join(["query-value", *place.replace(",", "").split()]),
        title="Query start x value start" + (f", {place}" if place else ""),
        rows=tuple(rows),
        columns=tuple(columns),
        values=tuple(tuple(_score(found, group) for group in row) for row in at),
        row_label="query",
        column_label="value",
        unit=metric,
        caption=f"Mean {metric} over seeds at each pair's best learning rate; below it the verdict against "
        f"the baseline {found.grid.baseline}. The paper's choice is query principal, value minor. "
        + _best(found, pairs),
        notes=tuple(tuple(_note(found, group) for group in row) for row in at),
    )


def _best(found: Comparison, pairs: dict[tuple[str, str], Group]) -> str:
    scored = {pair: score.mean for pair, group in pairs.items() if (score := found.measured[group].score)}
    if not scored:
        return "No pair has a score yet."
    larger = found.grid.larger_is_better(next(iter(pairs.values())))
    query, value = (max if larger else min)(scored, key=lambda pair: scored[pair])
    return f"The best mean is that of query {query}, value {value}: {format_number(scored[query, value])}."


def _score(found: Comparison, group: Group | None) -> float:
    score = found.measured[group].score if group else None
    return float("nan") if score is None else score.mean


def _note(found: Comparison, group: Group | None) -> str:
    if group is None:
        return ""
    if group.method == found.grid.baseline:
        return "baseline"
    return found.compared[group].verdict or ""


def _word(init: Init | None) -> str | None:
    """An init in the paper's words; None: one that it does not speak of."""
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
