"""Charts of a search by `ailora tune`: a metric over the learning rate, for all candidates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ailora.formatting import is_finite
from ailora.plots.chart_spec import Axis, Plot, Series


def candidate_chart(candidates: Sequence[Mapping[str, object]], step: int, *, metric: str) -> Iterator[Plot]:
    """Chart a metric at the end of the first rung over the learning rate, with a series for each init.

    Args:
        candidates: Value of `candidates` in `tune.json`.
        step: Last step of the first rung.
        metric: Name of the metric that ranked candidates in the first rung, such as `loss`.

    Yields:
        The chart, if a candidate has a value.
    """
    points: dict[str, list[tuple[float, float, str]]] = {}
    for candidate in candidates:
        values, rate = candidate.get("values"), candidate.get("learning_rate")
        value = values.get(str(step)) if isinstance(values, dict) else None
        if is_finite(value) and is_finite(rate) and rate > 0:
            roles = candidate.get("roles")
            note = ", ".join(map(str, roles)) if isinstance(roles, list) else str(roles)
            points.setdefault(str(candidate.get("policy")), []).append((rate, value, note))
    if not points:
        return
    series: list[Series] = []
    for style, (policy, candidate_points) in enumerate(points.items()):
        rates, values, notes = zip(*sorted(candidate_points), strict=True)
        series.append(Series(policy, rates, values, notes=notes, style=style))
    yield Plot(
        name="candidates",
        title=f"Candidates at step {step:,}",
        kind="points",
        x=Axis("learning rate", log=True),
        y=Axis(f"validation {metric.replace('_', ' ')}"),
        series=tuple(series),
        caption="Candidates of the search at the end of the first rung, each with one seed. Roles and ranks differ.",
    )
