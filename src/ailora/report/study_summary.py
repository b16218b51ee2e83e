"""What a study has found, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ailora.formatting import join_names, pluralize
from ailora.studies.comparison import Compared, Comparison
from ailora.studies.conditions import Group
from ailora.studies.method_results import report_split
from ailora.studies.statistics import Verdict
from ailora.studies.summary import interval, place_of

#: Wins and losses that are told one by one.
_TOLD = 6
_COUNTED = (
    (Verdict.WIN, "a win", "wins"),
    (Verdict.LOSS, "a loss", "losses"),
    (Verdict.TIE, "a tie", "ties"),
)


def headline(found: Comparison) -> list[str]:
    """How many methods win and lose, and whether there are seeds enough to tell."""
    baseline = found.grid.baseline
    judged = {group: compared for group, compared in found.compared.items() if compared.difference is not None}
    if not judged:
        return [f"No method has been compared with the baseline {baseline} yet."]
    count = Counter(compared.verdict for compared in judged.values())
    if count[Verdict.TIE] == len(judged):
        said = "the only comparison is a tie" if len(judged) == 1 else f"all {len(judged)} comparisons are ties"
        return [f"No method is shown to differ from the baseline {baseline}: {said}.", *_enough(judged)]
    told = [
        f"{number} {'is' if number == 1 else 'are'} {one if number == 1 else several}"
        for verdict, one, several in _COUNTED
        if (number := count[verdict])
    ]
    verdicts = f"all {told[0]}" if len(told) == 1 and len(judged) > 1 else join_names(told)
    comparisons = pluralize(len(judged), "comparison")
    return [f"Of {comparisons} with the baseline {baseline}, {verdicts}.", *_enough(judged)]


def decisions(found: Comparison) -> list[str]:
    """Every win, then every loss, by how much and with which interval; of very many, the first ones."""
    decided = [
        group for verdict in (Verdict.WIN, Verdict.LOSS) for group, c in found.compared.items() if c.verdict is verdict
    ]
    more = len(decided) - _TOLD
    rest = [f"{pluralize(more, 'more is', 'more are')} in the table of scores."] if more > 0 else []
    return [*(_decision(found, group) for group in decided[:_TOLD]), *rest]


def amounts(found: Comparison) -> Iterator[str]:
    """By how much each method differs from the baseline: a sentence for each task and point."""
    for base, here in found.places:
        told = [
            f"{g.method} {interval(difference.estimate, '+')} ({found.compared[g].verdict})"
            for g in here
            if (difference := found.compared[g].difference) is not None
        ]
        if told:
            place = place_of(found, base)
            metric = f"{found.grid.metric_of(base)} ({report_split(found.grid, base)})"
            yield f"{place + ': ' if place else ''}{metric} minus that of {base.method}: {'; '.join(told)}."


def _decision(found: Comparison, group: Group) -> str:
    compared = found.compared[group]
    assert compared.difference is not None
    place = place_of(found, group)
    p = "" if compared.adjusted_p is None else f", p {compared.adjusted_p:.3f} after Holm's correction"
    verb = "beats" if compared.verdict is Verdict.WIN else "loses to"
    return (
        f"{f'On {place}, ' if place else ''}{group.method} {verb} the baseline {found.grid.baseline} by "
        f"{interval(compared.difference.estimate, '+')} {found.grid.metric_of(group)} "
        f"(95 % interval over {pluralize(len(compared.difference.seeds), 'seed')}{p})."
    )


def _enough(judged: dict[Group, Compared]) -> list[str]:
    """Whether more could have been shown at all."""
    few = [group for group, compared in judged.items() if compared.difference and len(compared.difference.seeds) < 5]
    if not few:
        return []
    where = "None of them" if len(few) == len(judged) else f"{pluralize(len(few), 'comparison')} of {len(judged)}"
    verb = "has" if len(few) in (1, len(judged)) else "have"
    methods = "" if len(few) == len(judged) else f" ({join_names(dict.fromkeys(group.method for group in few))})"
    return [f"{where}{methods} {verb} the 5 seeds that a win or a loss needs."]
