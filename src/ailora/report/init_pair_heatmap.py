"""Heatmaps of scores over pairs of query init and value init (the paper's Figure 4)."""

from __future__ import annotations

from collections.abc import Iterator

from ailora.formatting import format_number
from ailora.inits import Init, Kaiming, Size, Spectral
from ailora.plots.chart_spec import Heatmap
from ailora.recipes.config.method import AiloraPolicy
from ailora.recipes.config.schema import AdapterConfig
from ailora.roles import Role, parse_role
from ailora.studies.comparison import Comparison
from ailora.studies.trial import Condition

#: Order of the rows and columns; other inits follow, sorted by name.
_INIT_ORDER = ("frozen", "random", "principal", "minor")
#: Number of pairs below which a list of methods is clearer than a heatmap.
_MIN_PAIRS = 4


def init_pair(adapter: AdapterConfig) -> tuple[str, str] | None:
    """Return the names of the inits of query and value.

    Args:
        adapter: The adapter section of a configuration.

    Returns:
        The paper's names, `frozen` for a role that is not adapted. None if the adapter has other roles or other inits.
    """
    method = adapter.method
    if not isinstance(method, AiloraPolicy):
        return None
    policy = method.policy
    roles = set(policy.default_roles if adapter.roles is None else map(parse_role, adapter.roles))
    if not roles or roles - {Role.QUERY, Role.VALUE}:
        return None
    query, value = (
        _init_name(policy.init_for(role)) if role in roles else "frozen" for role in (Role.QUERY, Role.VALUE)
    )
    return None if query is None or value is None else (query, value)


def init_pair_heatmaps(comparison: Comparison) -> Iterator[Heatmap]:
    """Chart the scores of pairs of inits, for each task and setting with enough pairs.

    Args:
        comparison: The results of a study.

    Yields:
        Heatmaps of query inits (rows) by value inits (columns).
    """
    for baseline, _ in comparison.by_baseline():
        pairs = _pairs(comparison, baseline)
        rows = sorted({query for query, _ in pairs}, key=_sort_key)
        columns = sorted({value for _, value in pairs}, key=_sort_key)
        # A list is clearer than a heatmap with a single row or column, or with mostly empty cells.
        if min(len(rows), len(columns)) < 2 or len(pairs) < max(_MIN_PAIRS, len(rows) * len(columns) / 2):
            continue
        metric = comparison.design.metric_label(baseline)
        conditions = [[pairs.get((row, column)) for column in columns] for row in rows]
        yield Heatmap(
            name="-".join(["query-value", *baseline.label.replace(",", "").split()]),
            title="Query start x value start" + (f", {baseline.label}" if baseline.label else ""),
            rows=tuple(rows),
            columns=tuple(columns),
            values=tuple(tuple(_score(comparison, c) for c in row) for row in conditions),
            row_label="query",
            column_label="value",
            unit=metric,
            caption=f"Mean {metric} over seeds at each pair's best learning rate; below it the verdict against "
            f"the baseline {baseline.method}. The paper's choice is query principal, value minor. "
            + _best(comparison, pairs),
            notes=tuple(tuple(_note(comparison, c) for c in row) for row in conditions),
        )


def _pairs(comparison: Comparison, baseline: Condition) -> dict[tuple[str, str], Condition]:
    """Map each pair to the first condition with these inits and otherwise the baseline's adapter options."""
    design = comparison.design
    baseline_options = _other_options(design.base_config(baseline).adapter)
    pairs: dict[tuple[str, str], Condition] = {}
    for condition in comparison.results:
        adapter = design.base_config(condition).adapter
        if design.baseline_for(condition) != baseline or _other_options(adapter) != baseline_options:
            continue
        if (pair := init_pair(adapter)) is not None:
            pairs.setdefault(pair, condition)
    return pairs


def _other_options(adapter: AdapterConfig) -> dict[str, object]:
    """Return the options of an adapter other than its inits and its rank."""
    # Matching trainable parameters changes the rank: a frozen role leaves more parameters to the adapted role.
    return adapter.model_dump(exclude={"policy", "roles", "rank"})


def _best(comparison: Comparison, pairs: dict[tuple[str, str], Condition]) -> str:
    """Return a sentence about the pair with the best mean score."""
    scored = {pair: score.mean for pair, c in pairs.items() if (score := comparison.results[c].score)}
    if not scored:
        return "No pair has a score yet."
    # All conditions have the same task, and therefore the same metric.
    larger_is_better = comparison.design.larger_is_better(next(iter(pairs.values())))
    choose_best = max if larger_is_better else min
    query, value = choose_best(scored, key=lambda pair: scored[pair])
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


def _init_name(init: Init | None) -> str | None:
    """Return the paper's name of an init, or None if the paper does not name the init."""
    match init:
        case None:
            return "frozen"
        case Kaiming():
            return "random"
        case Spectral():
            return init.band.value + ("" if init.size is Size.SINGULAR else f" ({init.size.value})")
        case _:
            return None


def _sort_key(name: str) -> tuple[int, str]:
    return (_INIT_ORDER.index(name) if name in _INIT_ORDER else len(_INIT_ORDER), name)
