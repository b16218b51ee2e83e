"""Loss and metric over steps (the paper's Figure 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

#: Okabe and Ito's colours, told apart by colour-blind readers, in an order whose grey values differ.
_COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
_DASHES = ("-", "--", "-.", ":")


def draw_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], metric: str | None, file: Path, *, title: str
) -> None:
    """Draw validation loss and a metric over steps, one line per run.

    Args:
        histories: name -> evaluations with `step`, `loss` and the metric, as in `result.json`.
        metric: the name of the metric; None: the loss alone.
        file: where to write; the ending decides the format.
        title: what stands above.
    """
    keys = ["loss"] if metric is None else ["loss", metric]
    figure = Figure(figsize=(9, 3.6) if metric else (6, 3.6), layout="constrained")
    for axis, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        for number, (name, history) in enumerate(histories.items()):
            axis.plot(
                [record["step"] for record in history],
                [record[key] for record in history],
                label=name,
                color=_COLOURS[number % len(_COLOURS)],
                linestyle=_DASHES[number % len(_DASHES)],
                marker="o",
                markersize=3,
            )
        axis.set_xlabel("steps")
        axis.set_ylabel(f"validation {key.replace('_', ' ')}")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[-1].legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
