"""Loss and metric over steps (the paper's Figure 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ailora.plots.chart_spec import Axis, Plot, Series
from ailora.plots.matplotlib_backend import draw


def curve_charts(histories: Mapping[str, Sequence[Mapping[str, Any]]], metric: str | None) -> list[Plot]:
    """Validation loss and a metric over steps, one line per run.

    Args:
        histories: name -> evaluations with `step`, `loss` and the metric, as in `result.json`.
        metric: the name of the metric; None: the loss alone.
    """
    return [
        Plot(
            name=f"curve-{key}",
            title=f"Validation {key.replace('_', ' ')}",
            kind="lines",
            x=Axis("steps"),
            y=Axis(f"validation {key.replace('_', ' ')}"),
            series=tuple(
                Series(
                    name=name,
                    x=[record["step"] for record in history],
                    y=[record[key] for record in history],
                    style=style,
                )
                for style, (name, history) in enumerate(histories.items())
            ),
            caption=f"{key.replace('_', ' ').capitalize()} on the validation data over training steps, a line per run.",
        )
        for key in (["loss"] if metric is None else ["loss", metric])
    ]


def draw_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], metric: str | None, file: Path, *, title: str
) -> None:
    """Draw `curve_charts` into one file.

    Args:
        histories: as `curve_charts`.
        metric: as `curve_charts`.
        file: where to write; the ending decides the format.
        title: what stands above.
    """
    draw(curve_charts(histories, metric), file, title=title)
