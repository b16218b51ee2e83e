"""Factors of the anchored form: a frozen anchor and a trainable difference, saved as one stock LoRA factor."""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ailora.errors import AnchorMismatchError
from ailora.lora.anchor import anchor_distance, snap_to_grid, stack_A, stack_B, unstack_A, unstack_B
from ailora.lora.packed_factor import PackedFactor
from ailora.weights.dtensor import distribute_like, full_tensor, validate_unsharded


class AnchoredFactor(PackedFactor):
    """Factor with its anchor as a buffer and the difference as the parameter `delta`."""

    anchor: Tensor
    delta: nn.Parameter

    def __init__(self, anchor: Tensor) -> None:
        super().__init__()
        # A buffer: PEFT calls `requires_grad_` on the parent, which would unfreeze a parameter.
        self.register_buffer("anchor", anchor.contiguous().clone())
        self.delta = nn.Parameter(torch.zeros_like(self.anchor))

    @abstractmethod
    def unstack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Split a stacked factor into anchor and delta."""

    def unpack(self, weight: Tensor) -> dict[str, Tensor]:
        anchor, delta = self.unstack(self._as_anchor(weight))
        delta = delta.to(self.delta.dtype).clone(memory_format=torch.contiguous_format)
        return {
            "anchor": anchor.clone(memory_format=torch.contiguous_format),
            "delta": distribute_like(delta, self.delta),
        }

    def restart(self, weight: Tensor) -> None:
        nn.init.zeros_(self.delta)

    def validate_same_anchor(self, weight: Tensor, name: str) -> None:
        self.validate_shape(weight, name)
        if self.anchor.is_meta:
            # An engine has moved the model away and gives every process the first one's: there is nothing to compare.
            return
        stacked = self._as_anchor(weight)
        anchor, delta = self.unstack(stacked)
        eps = max(torch.finfo(dtype).eps for dtype in (weight.dtype, self.anchor.dtype))
        distance = anchor_distance(self.anchor, anchor, delta=delta, eps=eps)
        if distance is not None:
            if not torch.isfinite(stacked).all():
                raise AnchorMismatchError(
                    f"{name}: the file holds NaN or infinite entries, and no anchor can be compared with them: its "
                    "training diverged, train it again"
                )
            raise AnchorMismatchError(
                f"{name}: the file was made for another start (its anchor is {distance:.1e} away, "
                "relative to this one's size): another base, policy, rank or an ordinary LoRA. "
                "Load it under another adapter name, or into the base model with PeftModel.from_pretrained."
            )

    def extra_repr(self) -> str:
        return f"anchor={tuple(self.anchor.shape)}, stacked={self.shape}"

    def _full_delta(self) -> Tensor:
        return validate_unsharded(full_tensor(self.delta), self.anchor.shape)

    def _as_anchor(self, weight: Tensor) -> Tensor:
        return weight.to(self.anchor.dtype) if self.anchor.is_meta else weight.to(self.anchor)


class AnchoredA(AnchoredFactor):
    """`lora_A` of the anchored form, `A0` (r, in) above the difference `dA` (r, in)."""

    @property
    def shape(self) -> tuple[int, int]:
        return 2 * self.anchor.shape[0], self.anchor.shape[1]

    def stack(self) -> Float[Tensor, "two_r in_"]:
        return stack_A(self.anchor, self._full_delta())

    def unstack(self, weight: Float[Tensor, "two_r in_"]) -> tuple[Tensor, Tensor]:
        return unstack_A(weight)


class AnchoredB(AnchoredFactor):
    """`lora_B` of the anchored form, `dB` (out, r) beside `B = B0 + dB` (out, r), with `B0` on the grid."""

    def __init__(self, anchor: Float[Tensor, "out r"]) -> None:
        super().__init__(snap_to_grid(anchor))

    @property
    def shape(self) -> tuple[int, int]:
        return self.anchor.shape[0], 2 * self.anchor.shape[1]

    def stack(self) -> Float[Tensor, "out two_r"]:
        delta = self._full_delta()
        return stack_B(delta, self.anchor + delta)

    def unstack(self, weight: Float[Tensor, "out two_r"]) -> tuple[Tensor, Tensor]:
        delta, total = unstack_B(weight)
        # Beside a difference many times its size, the anchor has lost digits in the sum. Ours may be the one.
        if not self.anchor.is_meta and torch.equal(self.anchor + delta, total):
            return self.anchor.clone(), delta
        return snap_to_grid(total - delta), delta
