"""Factors with a single parameter, the factor itself: plain LoRA and the residual form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ailora.lora.anchor import stack_A, stack_B, unstack_A, unstack_B
from ailora.lora.packed_factor import PackedFactor
from ailora.weights.dtensor import distribute_like, full_tensor, validate_unsharded


class PlainFactor(PackedFactor):
    """A factor of plain LoRA, with all entries trainable and no anchor."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        # The shape is stored, because ZeRO-3 replaces the data of the parameter by an empty tensor.
        self._shape = (weight.shape[0], weight.shape[1])
        self.value = nn.Parameter(weight.contiguous().clone())

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    def stack(self) -> Tensor:
        return validate_unsharded(full_tensor(self.value), self._shape)

    def unpack(self, weight: Tensor) -> dict[str, Tensor]:
        return {"value": distribute_like(weight.contiguous(), self.value)}

    @torch.no_grad()
    def restart(self, weight: Tensor) -> None:
        self.value.copy_(distribute_like(weight, self.value))

    def validate_same_anchor(self, weight: Tensor, name: str) -> None:
        # State dicts of this factor contain no anchor, so only the shape can differ.
        self.validate_shape(weight, name)


class ResidualFactor(PlainFactor):
    """A factor of the residual form. The anchor is kept to restore the base weights and to write the file.

    State dicts do not contain the anchor: a Trainer's checkpoint is an ordinary LoRA for the residual weights
    `W - s B0 A0`.
    """

    anchor: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self.register_buffer("anchor", weight.detach().clone(), persistent=False)

    def restart(self, weight: Tensor) -> None:  # noqa: ARG002 (the factor starts from its anchor)
        super().restart(self.anchor)


class ResidualA(ResidualFactor):
    """`lora_A` of the residual form, `A` (r, in)."""

    @property
    def file_shape(self) -> tuple[int, int]:
        return 2 * self.shape[0], self.shape[1]

    def to_file(self) -> Tensor:
        A = self.stack().detach()
        return stack_A(self.anchor, A - self.anchor)

    def from_file(self, weight: Tensor) -> Tensor:
        anchor, delta = unstack_A(weight)
        return anchor + delta


class ResidualB(ResidualFactor):
    """`lora_B` of the residual form, `B` (out, r)."""

    @property
    def file_shape(self) -> tuple[int, int]:
        return self.shape[0], 2 * self.shape[1]

    def to_file(self) -> Tensor:
        B = self.stack().detach()
        return stack_B(B - self.anchor, B)

    def from_file(self, weight: Tensor) -> Tensor:
        return unstack_B(weight)[1]
