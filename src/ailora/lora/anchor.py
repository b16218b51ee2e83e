"""Algebra of the anchored form: the anchor `A0`, `B0`, and its place in the file.

With `A = A0 + dA` and `B = B0 + dB`, `B A - B0 A0 = [dB, B] [A0; dA]` exactly. The left side is the trained update,
the right side an ordinary LoRA of rank 2r: the file. At the start `dA = dB = 0`: each block of one factor meets a block
of zeros in the other, so that the product is zero in every dtype and kernel.

Shapes: `A0`, `dA` (r, in); `B0`, `dB`, `B` (out, r).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

#: Largest relative distance of equal anchors, beyond the rounding of their dtype. Decompositions on other machines
#: differ by about 1e-5, those of other weights, ranks or policies by about 1.
_MAX_ANCHOR_DISTANCE = 1e-3
#: The step of the grid of `B0` is 2^-19 to 2^-18 of its largest entry.
_GRID_BITS = 19


def stack_A(anchor: Float[Tensor, "r in_"], delta: Float[Tensor, "r in_"]) -> Float[Tensor, "two_r in_"]:
    """Return `lora_A` of the file, `[A0; dA]`."""
    return torch.cat([anchor, delta], dim=0)


def stack_B(delta: Float[Tensor, "out r"], total: Float[Tensor, "out r"]) -> Float[Tensor, "out two_r"]:
    """Return `lora_B` of the file, `[dB, B]`."""
    return torch.cat([delta, total], dim=1)


def unstack_A(stacked: Float[Tensor, "two_r in_"]) -> tuple[Tensor, Tensor]:
    """Return `A0` and `dA`, views of the file's `lora_A`."""
    anchor, delta = stacked.chunk(2, dim=0)
    return anchor, delta


def unstack_B(stacked: Float[Tensor, "out two_r"]) -> tuple[Tensor, Tensor]:
    """Return `dB` and `B`, views of the file's `lora_B`; `B - dB` is `B0` to rounding."""
    delta, total = stacked.chunk(2, dim=1)
    return delta, total


def snap_to_grid(B: Tensor) -> Tensor:
    """Round `B` to multiples of a power of two, 2^-19 to 2^-18 of its largest entry.

    The start changes by less than 1e-5 of its norm. For a `dB` up to eight times as large as `B0`, the rounding
    errors of `B0 + dB` and of the difference in float32 stay below half a step: rounding `B - dB` to the grid returns
    `B0` bit for bit, and a resumed run equals an uninterrupted run.
    """
    step = _grid_step(B)
    return B if step is None else ((B.double() / step).round() * step).to(B.dtype)


def left_grid(stacked: Float[Tensor, "out two_r"], eps: float) -> bool:
    """Return whether `B - dB` of a file has left the grid of `B0`, because a stock trainer trained the full factor.

    Args:
        stacked: `lora_B` of the file.
        eps: Machine precision of the file's factors. Half precision rounds more coarsely than the grid; the result is
            then False.
    """
    delta, total = unstack_B(stacked)
    anchor = total - delta
    step = _grid_step(anchor)
    if step is None:
        return False
    off = (anchor.double() - snap_to_grid(anchor).double()).abs()
    return bool((off > eps * (total.abs() + delta.abs() + anchor.abs())).any())


def anchor_distance(anchor: Tensor, other: Tensor, *, delta: Tensor | None = None, eps: float = 0.0) -> float | None:
    """Compare two anchors.

    Args:
        anchor: The anchor.
        other: The other anchor, of the same shape.
        delta: The difference from which `other` was recovered; its norm bounds the rounding error.
        eps: Machine precision of the coarser anchor.

    Returns:
        None if the anchors are equal up to rounding; else their distance relative to the norm of `anchor`.
    """
    size = anchor.norm()
    distance = (other - anchor).norm()
    rounding = eps * (size + (2 * delta.norm() if delta is not None else 0.0))
    return None if distance <= _MAX_ANCHOR_DISTANCE * size + rounding else float(distance / size)


def _grid_step(B: Tensor) -> Tensor | None:
    """Return the step of the grid, a float64 scalar; None for a factor of zeros or with infinite entries."""
    largest = B.abs().max() if B.numel() else B.new_zeros(())
    if largest == 0 or not torch.isfinite(largest):
        return None
    # The factor puts the threshold between two steps between grid points: a recovered `B0` gets the same step again.
    exponent = torch.frexp(largest.double() * (1 + 2.0**-21)).exponent
    return torch.ldexp(torch.ones((), dtype=torch.float64, device=B.device), exponent - _GRID_BITS)
