"""The anchored form: a frozen start and a trained difference, which read and save as one stock LoRA factor.

With `A = A0 + dA` and `B = B0 + dB`, `B A - B0 A0 = [dB, B] [A0; dA]` exactly. The left side is what trains, the right
side is an ordinary LoRA of rank 2r. At the start `dA = dB = 0`, and the product has a zero block against each full one,
so that it is zero in every dtype and kernel.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ailora.errors import AnchorMismatchError
from ailora.lora.packed_factor import PackedFactor
from ailora.weights.dtensor import distribute_like, full_tensor, validate_unsharded

#: Two anchors closer than this, relative to their size and beyond their dtype's rounding, are the same start:
#: decompositions on other machines differ by about 1e-5, those of other weights, ranks or policies by about 1.
_SAME_START = 1e-3


class AnchoredFactor(PackedFactor):
    """A factor that holds the anchor as a buffer and the difference from it as the parameter `delta`.

    As a parameter the anchor would be woken by PEFT's `requires_grad_` on its parent.
    """

    anchor: Tensor
    delta: nn.Parameter

    def __init__(self, anchor: Tensor) -> None:
        super().__init__()
        self.register_buffer("anchor", anchor.contiguous().clone())
        self.delta = nn.Parameter(torch.zeros_like(self.anchor))

    @abstractmethod
    def unstack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The anchor and the delta inside a factor that `stack` made."""

    def unpack(self, weight: Tensor) -> dict[str, Tensor]:
        anchor, delta = self.unstack(self._as_anchor(weight))
        delta = delta.to(self.delta.dtype).clone(memory_format=torch.contiguous_format)
        return {
            "anchor": anchor.clone(memory_format=torch.contiguous_format),
            "delta": distribute_like(delta, self.delta),
        }

    def validate_same_anchor(self, weight: Tensor, name: str) -> None:
        self.validate_shape(weight, name)
        if self.anchor.is_meta:
            # An engine has moved the model away and gives every process the first one's: there is nothing to compare.
            return
        anchor, delta = self.unstack(self._as_anchor(weight))
        size = self.anchor.norm() + 2 * delta.norm()
        eps = max(torch.finfo(dtype).eps for dtype in (weight.dtype, self.anchor.dtype))
        distance = (anchor - self.anchor).norm()
        if not distance <= _SAME_START * self.anchor.norm() + eps * size:
            raise AnchorMismatchError(
                f"{name}: the file was made for another start (its anchor is {distance / self.anchor.norm():.1e} away, "
                "relative to this one's size): another base, policy, rank or an ordinary LoRA. "
                "Load it under another adapter name, or into the base model with PeftModel.from_pretrained."
            )

    def extra_repr(self) -> str:
        return f"anchor={tuple(self.anchor.shape)}, stacked={self.shape}"

    def _whole_delta(self) -> Tensor:
        return validate_unsharded(full_tensor(self.delta), self.anchor.shape)

    def _as_anchor(self, weight: Tensor) -> Tensor:
        return weight.to(self.anchor.dtype) if self.anchor.is_meta else weight.to(self.anchor)


class AnchoredA(AnchoredFactor):
    """`lora_A`: the anchor `A0` (r, in) above the difference `dA` (r, in)."""

    @property
    def shape(self) -> tuple[int, int]:
        return 2 * self.anchor.shape[0], self.anchor.shape[1]

    def stack(self) -> Float[Tensor, "two_r in_"]:
        return torch.cat([self.anchor, self._whole_delta()], dim=0)

    def unstack(self, weight: Float[Tensor, "two_r in_"]) -> tuple[Tensor, Tensor]:
        anchor, delta = weight.chunk(2, dim=0)
        return anchor, delta


class AnchoredB(AnchoredFactor):
    """`lora_B`: the difference `dB` (out, r) beside `B = B0 + dB` (out, r).

    `B0` lies on a grid, so that `B - dB`, rounded to the grid, gives it back bit for bit.
    """

    def __init__(self, anchor: Float[Tensor, "out r"]) -> None:
        super().__init__(snap_to_grid(anchor))

    @property
    def shape(self) -> tuple[int, int]:
        return self.anchor.shape[0], 2 * self.anchor.shape[1]

    def stack(self) -> Float[Tensor, "out two_r"]:
        delta = self._whole_delta()
        return torch.cat([delta, self.anchor + delta], dim=1)

    def unstack(self, weight: Float[Tensor, "out two_r"]) -> tuple[Tensor, Tensor]:
        delta, total = weight.chunk(2, dim=1)
        return snap_to_grid(total - delta), delta


def snap_to_grid(B: Tensor) -> Tensor:
    """`B` rounded to multiples of a power of two, 2^-19 to 2^-18 of its largest entry.

    Moves a start by less than 1e-5 of its norm and leaves room for `B + dB` with `dB` up to eight times as large: the
    rounding errors of the sum and of the difference in float32 stay below half a step. The threshold between two
    steps lies between grid points, so that a recovered `B0` finds the step that it was put on.
    """
    largest = B.abs().max()
    if largest == 0 or not torch.isfinite(largest):
        return B
    exponent = torch.frexp(largest.double() * (1 + 2.0**-21)).exponent
    step = torch.ldexp(torch.ones((), dtype=torch.float64, device=B.device), exponent - 19)
    return ((B.double() / step).round() * step).to(B.dtype)
