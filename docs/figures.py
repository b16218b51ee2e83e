"""Draws the pictures of `concepts.md` from real weights: layer 3 of MiniLM.

python -m docs.figures
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from transformers import AutoModel

from ailora.model_path import resolve_model

FOLDER = Path(__file__).parent / "images"
LAYER, RANK = 2, 16
#: Okabe and Ito's colours; what is frozen is grey, what trains has a colour.
TRAINED, ANCHOR, FROZEN, INK = "#D55E00", "#56B4E9", "#D9D9D9", "#222222"


def spectra() -> dict[str, Tensor]:
    """Singular values of W^Q and W^V of one layer of MiniLM, largest first."""
    attention = AutoModel.from_pretrained(resolve_model("builtin:minilm")).encoder.layer[LAYER].attention.self
    return {
        "query": torch.linalg.svdvals(attention.query.weight.detach().double()),
        "value": torch.linalg.svdvals(attention.value.weight.detach().double()),
    }


def draw_method(values: dict[str, Tensor]) -> Figure:
    """The paper's Figure 2: which part of W^Q and of W^V goes into the adapter, and what stays."""
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    rows = figure.subplots(2, 2, width_ratios=(1, 1.45))
    for (left, right), role, letter, band in zip(rows, values, "QV", ("principal", "minor"), strict=True):
        _draw_spectrum(left, values[role], letter, band)
        _draw_split(right, letter, band)
    rows[1][0].set_xlabel("index of the singular value, from the largest")
    return figure


def _draw_spectrum(axis: Axes, values: Tensor, letter: str, band: str) -> None:
    last = len(values) - 1
    chosen = (0, RANK) if band == "principal" else (last - RANK, last)
    for (start, end), colour in (((0, last), "#9A9A9A"), (chosen, TRAINED)):
        axis.fill_between(range(start, end + 1), values[start : end + 1].tolist(), 1e-4, color=colour, lw=0)
    axis.set_yscale("log")
    axis.set_title(f"$W^{letter}$, layer {LAYER + 1} of MiniLM: the {RANK} {band} of {len(values)}", fontsize=10)
    axis.set_ylabel("singular value")
    axis.spines[["top", "right"]].set_visible(False)
    at, side = (RANK + 6, "left") if band == "principal" else (len(values) - RANK - 6, "right")
    axis.text(at, float(values[0]) * 1.15, f"{band} band", color=TRAINED, ha=side, va="bottom", fontsize=9)
    axis.set_ylim(3e-4, float(values[0]) * 3)


def _draw_split(axis: Axes, letter: str, band: str) -> None:
    _prepare(axis, 7.6)
    _block(axis, (0.0, 0.0), (2, 2), f"$W^{letter}$", colour=FROZEN)
    _sign(axis, 2.35, "=")
    _block(axis, (2.7, 0.0), (2, 2), f"$W^{letter}_{{res}}$", colour=FROZEN, note="frozen")
    _sign(axis, 5.05, "+ s")
    _block(axis, (5.4, 0.0), (0.32, 2), "$B$", colour=TRAINED, note="trained")
    _block(axis, (5.85, 1.68), (1.7, 0.32), "$A$", colour=TRAINED)
    axis.text(5.95, 1.25, f"start: $U_r (S_r/s)^{{1/2}}$ and $(S_r/s)^{{1/2}} V_r^T$\nof the {band} band",
              fontsize=9, va="top", color=INK)  # fmt: skip


def draw_anchored() -> Figure:
    """The anchored form: the base stays, the update is the difference from the anchor, the file has rank 2r."""
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    axis = figure.subplots()
    _prepare(axis, 11.6)
    _block(axis, (0.0, 0.0), (2, 2), "$W$", colour=FROZEN, note="the base, untouched")
    _sign(axis, 2.4, "+ s")
    for left, text, colour in ((2.8, "$dB$", TRAINED), (3.22, "$B$", TRAINED)):
        _block(axis, (left, 0.0), (0.4, 2), text, colour=colour)
    for bottom, text, colour in ((1.6, "$A_0$", ANCHOR), (1.18, "$dA$", TRAINED)):
        _block(axis, (3.85, bottom), (2, 0.4), text, colour=colour)
    axis.text(2.8, -0.3, "lora_B = [dB, B], with $B = B_0 + dB$", fontsize=9, va="center", color=INK)
    axis.text(3.85, 0.85, "lora_A = [$A_0$; dA]", fontsize=9, va="center", color=INK)
    explained = (
        (ANCHOR, "$A_0$, $B_0$: the anchor, one band of W; never changes"),
        (TRAINED, "$dA$, $dB$: what trains, from zero: r (in + out) numbers"),
        (FROZEN, "$W$: never written to"),
    )
    for number, (colour, text) in enumerate(explained):
        axis.add_patch(Rectangle((6.5, 1.72 - 0.38 * number), 0.26, 0.24, facecolor=colour, edgecolor=INK, lw=0.8))
        axis.text(6.9, 1.84 - 0.38 * number, text, fontsize=9.5, va="center", color=INK)
    formula = "$dW = s\\,(B A - B_0 A_0) = s\\,(dB\\,A_0 + B\\,dA)$"
    axis.text(6.5, 0.58, formula, fontsize=12, va="center", color=INK)
    axis.text(6.5, 0.18, "At the start $dA = dB = 0$: every product has a zero factor,", fontsize=9.5, color=INK)
    axis.text(6.5, -0.08, "so that dW is exactly zero in every dtype.", fontsize=9.5, color=INK)
    return figure


def _prepare(axis: Axes, width: float) -> None:
    axis.set_xlim(-0.1, width)
    axis.set_ylim(-0.45, 2.2)
    axis.set_aspect("equal")
    axis.axis("off")


def _block(
    axis: Axes, corner: tuple[float, float], size: tuple[float, float], text: str, *, colour: str, note: str = ""
) -> None:
    axis.add_patch(Rectangle(corner, *size, facecolor=colour, edgecolor=INK, lw=1))
    x, y = corner[0] + size[0] / 2, corner[1] + size[1] / 2
    axis.text(x, y, text, fontsize=12, ha="center", va="center", color=INK)
    if note:
        axis.text(x, corner[1] - 0.22, note, fontsize=9, ha="center", va="center", color=INK)


def _sign(axis: Axes, x: float, text: str) -> None:
    axis.text(x, 1.0, text, fontsize=14, ha="center", va="center", color=INK)


def main() -> None:
    """Write both pictures; the same weights give the same bytes."""
    figures = {"concept-method": draw_method(spectra()), "concept-anchored": draw_anchored()}
    with mpl.rc_context({"svg.hashsalt": "ailora", "font.family": "DejaVu Sans"}):
        for name, figure in figures.items():
            figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
