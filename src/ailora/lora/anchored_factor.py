"""Factors of the anchored form: a frozen anchor and a trained difference, packed into one stock LoRA factor."""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ailora.errors import AnchorMismatchError
from ailora.lora.anchor import compute_anchor_distance, snap_to_grid, stack_A, stack_B, unstack_A, unstack_B
from ailora.lora.packed_factor import PackedFactor
from ailora.weights.base_weight import all_finite
from ailora.weights.dtensor import distribute_like, full_tensor, validate_unsharded


class AnchoredFactor(PackedFactor):
    """Sum of a frozen anchor (a buffer) and the trained difference from the anchor (the parameter `delta`)."""

    # The anchor is a buffer, because a frozen parameter would not stay frozen: PEFT calls `requires_grad_` on the
    # parent module.

    anchor: Tensor
    delta: nn.Parameter

    def __init__(self, anchor: Tensor) -> None:
        super().__init__()
        self.register_buffer("anchor", anchor.contiguous().clone())
        self.delta = nn.Parameter(torch.zeros_like(self.anchor))

    @abstractmethod
    def unstack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Split a packed factor into the anchor and the delta."""

    def unpack(self, weight: Tensor) -> dict[str, Tensor]:
        # With `low_cpu_mem_usage`, PEFT casts factors to the dtype of the base model, and later casts only parameters
        # back. A buffer left in half precision would round the anchor from the file.
        self.anchor = self.anchor.to(self._exact_dtype)
        anchor, delta = self.unstack(self._as_anchor(weight))
        delta = delta.to(self.delta.dtype).clone(memory_format=torch.contiguous_format)
        return {
            "anchor": anchor.clone(memory_format=torch.contiguous_format),
            "delta": distribute_like(delta, self.delta),
        }

    def restart(self, weight: Tensor) -> None:  # noqa: ARG002 (the factor starts from its anchor)
        nn.init.zeros_(self.delta)

    def validate_same_anchor(self, weight: Tensor, name: str) -> None:
        self.validate_shape(weight, name)
        if self.anchor.is_meta:
            # An engine has moved the model to the meta device, and will broadcast the state of the first process.
            return
        stacked = self._as_anchor(weight)
        # An infinite `delta` would make any distance between anchors count as rounding.
        if not all_finite(stacked):
            raise AnchorMismatchError(
                f"{name}: the file holds NaN or infinite entries, so its anchor cannot be read: training has diverged"
            )
        anchor, delta = self.unstack(stacked)
        eps = max(torch.finfo(dtype).eps for dtype in (weight.dtype, self.anchor.dtype))
        distance = compute_anchor_distance(self.anchor, anchor, delta=delta, eps=eps)
        if distance is not None:
            raise AnchorMismatchError(
                f"{name}: the anchor in the file differs from the anchor of this adapter (relative distance "
                f"{distance:.1e}). The base model, policy or rank differs, or the file is an ordinary LoRA: load the "
                "file under a new adapter name, or into the base model with PeftModel.from_pretrained"
            )

    def extra_repr(self) -> str:
        return f"anchor={tuple(self.anchor.shape)}, stacked={self.shape}"

    def _full_delta(self) -> Tensor:
        """Return the whole difference, gathered if FSDP2 shards `delta`."""
        return validate_unsharded(full_tensor(self.delta), self.anchor.shape)

    @property
    def _exact_dtype(self) -> torch.dtype:
        """The finer of the dtypes of the anchor and the delta."""
        return torch.promote_types(self.anchor.dtype, self.delta.dtype)

    def _as_anchor(self, weight: Tensor) -> Tensor:
        """Convert a packed factor to the anchor's device, unless the anchor is on meta, and to the exact dtype."""
        device = weight.device if self.anchor.is_meta else self.anchor.device
        return weight.to(device, self._exact_dtype)


class AnchoredA(AnchoredFactor):
    """`lora_A`: the anchor `A0` (r, in) above the difference `dA` (r, in)."""

    @property
    def shape(self) -> tuple[int, int]:
        return 2 * self.anchor.shape[0], self.anchor.shape[1]

    def stack(self) -> Float[Tensor, "two_r in_"]:
        return stack_A(self.anchor, self._full_delta())

    def unstack(self, weight: Float[Tensor, "two_r in_"]) -> tuple[Tensor, Tensor]:
        return unstack_A(weight)


class AnchoredB(AnchoredFactor):
    """`lora_B`: the difference `dB` (out, r) beside `B = B0 + dB` (out, r). `B0` lies on a grid, see `snap_to_grid`."""

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
        # If `dB` is much larger than `B0`, the sum in the file has lost digits of `B0`. If this factor's anchor gives
        # the same sum, the anchors count as equal.
        if not self.anchor.is_meta and torch.equal(self.anchor + delta, total):
            return self.anchor.clone(), delta
        return snap_to_grid(total - delta), delta
