"""Algebra of the anchored form: the anchor `A0`, `B0`, and its place in the file.

With `A = A0 + dA` and `B = B0 + dB`, the trained update equals an ordinary LoRA of rank 2r, which is the LoRA in the
file: `B A - B0 A0 = [dB, B] [A0; dA]`. Before training, `dA = dB = 0`, and `[0, B0] [A0; 0]` is exactly zero in every
dtype and kernel, because every product in the sum has a zero factor.

Shapes: `A0`, `dA` (r, in); `B0`, `dB`, `B` (out, r).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

#: Two anchors count as equal up to this relative distance, plus rounding errors of the stored dtype. Anchors from two
#: machines differ by about 1e-5, anchors of different weights, ranks or policies by about 1.
_MAX_ANCHOR_DISTANCE = 1e-3
#: The grid of `B0` has steps of 2^-19 to 2^-18 of the largest entry. `snap_to_grid` gives the reason.
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
    """Return `dB` and `B`, views of the file's `lora_B`. `B - dB` equals `B0` up to rounding."""
    delta, total = stacked.chunk(2, dim=1)
    return delta, total


def snap_to_grid(B: Tensor) -> Tensor:
    """Round `B` to multiples of a step: a power of two between 2^-19 and 2^-18 times the largest entry.

    Files contain `dB` and the float32 sum `B0 + dB`. A resumed run must recover `B0` from both bit for bit. For `dB` up
    to eight times as large as `B0`, rounding errors of the sum and of the difference stay below half a step, and
    rounding the difference to the grid removes them. The grid changes `B` by less than 1e-5 of its norm.

    Args:
        B: Factor (out, r).

    Returns:
        The rounded factor, `B0` of the anchored form. A factor that is zero or not finite is returned unchanged.
    """
    if B.device.type == "mps":
        # Apple's GPUs have no float64.
        return snap_to_grid(B.cpu()).to(B.device)
    step = _grid_step(B)
    return B if step is None else ((B.double() / step).round() * step).to(B.dtype)


def is_off_grid(stacked: Float[Tensor, "out two_r"], eps: float) -> bool:
    """Return whether `B - dB` in a file is off the grid of `B0`.

    If it is, training without ailora has changed the anchor.

    Args:
        stacked: `lora_B` from the file, `[dB, B]`.
        eps: Machine precision of the stored factors. The rounding errors of half precision exceed the step of the grid,
            and hide most changes.
    """
    delta, total = unstack_B(stacked)
    anchor = total - delta
    step = _grid_step(anchor)
    if step is None:
        return False
    deviation = (anchor.double() - snap_to_grid(anchor).double()).abs()
    return bool((deviation > eps * (total.abs() + delta.abs() + anchor.abs())).any())


def compute_anchor_distance(
    anchor: Tensor, candidate: Tensor, *, delta: Tensor | None = None, eps: float = 0.0
) -> float | None:
    """Compute the relative distance between two anchors.

    Args:
        anchor: Reference anchor.
        candidate: Anchor to compare, with the shape of `anchor`.
        delta: Trained difference that was subtracted to recover `candidate`. Its norm bounds the rounding error.
        eps: Machine precision of the coarser of the dtypes in which the two anchors were stored.

    Returns:
        The distance, relative to the norm of `anchor`. None if the anchors are equal up to rounding.
    """
    norm = anchor.norm()
    distance = (candidate - anchor).norm()
    # The file stores `delta` and the sum `anchor + delta`, both rounded.
    rounding = eps * (norm + (2 * delta.norm() if delta is not None else 0.0))
    return None if distance <= _MAX_ANCHOR_DISTANCE * norm + rounding else float(distance / norm)


def _grid_step(B: Tensor) -> Tensor | None:
    """Return the step of the grid, a float64 scalar. None for a factor that is zero or has NaN or infinite entries."""
    largest = B.abs().max() if B.numel() else B.new_zeros(())
    if largest == 0 or not torch.isfinite(largest):
        return None
    # The step doubles where the largest entry reaches a power of two. The factor 1 + 2^-21 moves this threshold off the
    # grid, so that rounding errors in a recovered `B0` do not change the step.
    exponent = torch.frexp(largest.double() * (1 + 2.0**-21)).exponent
    return torch.ldexp(torch.ones((), dtype=torch.float64, device=B.device), exponent - _GRID_BITS)
