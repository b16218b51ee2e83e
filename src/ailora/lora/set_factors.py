"""Set initial factors in PEFT's layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ailora.lora.anchored_factor import AnchoredA, AnchoredB
from ailora.lora.fused_factor import FusedA, FusedB
from ailora.lora.initial_factors import InitialFactors
from ailora.lora.packed_factor import PackedFactor
from ailora.lora.plain_factor import PlainFactor, ResidualA, ResidualB
from ailora.plan.adapter_plan import Form, Plan
from ailora.weights.base_weight import write_rows
from ailora.weights.dtensor import distribute_like


def set_factors(layer: LoraLayer, factors: Sequence[InitialFactors], adapter_name: str, plan: Plan) -> None:
    """Set the initial factors of a module in PEFT's layer, with the dtype and device of the replaced factors.

    Args:
        layer: PEFT's layer of the module.
        factors: Initial factors of the module, with an entry for each adapted role if the weight is fused.
        adapter_name: PEFT's name for the adapter.
        plan: The plan of the adapter.
    """
    stock_A, stock_B = layer.lora_A[adapter_name], layer.lora_B[adapter_name]
    assert isinstance(stock_A, nn.Linear)
    assert isinstance(stock_B, nn.Linear)
    A, B = build_factors(factors, plan, like_A=stock_A.weight, like_B=stock_B.weight)
    # A factor without an anchor stays PEFT's `nn.Linear`, which all engines and merging tools support.
    if plan.form is Form.STOCK or type(A) is PlainFactor:
        with torch.no_grad():
            # Under tensor parallelism, PEFT has sharded one of the factors.
            stock_A.weight.copy_(distribute_like(A.stack(), stock_A.weight))
            stock_B.weight.copy_(distribute_like(B.stack(), stock_B.weight))
        return
    # Move the buffers of `key_stand_in` from the CPU, because DDP broadcasts buffers on the model's device. All other
    # tensors are on the device already.
    layer.lora_A[adapter_name] = A.to(stock_A.weight.device).requires_grad_(stock_A.weight.requires_grad)
    layer.lora_B[adapter_name] = B.to(stock_B.weight.device).requires_grad_(stock_B.weight.requires_grad)


def build_factors(
    factors: Sequence[InitialFactors], plan: Plan, *, like_A: Tensor | None = None, like_B: Tensor | None = None
) -> tuple[PackedFactor, PackedFactor]:
    """Build the factors of a module for training.

    In the anchored and the stock form, the packed factors equal those of the file.

    Args:
        factors: Initial factors of the module, with an entry for each adapted role if the weight is fused.
        plan: The plan of the adapter.
        like_A: Tensor with the dtype and device for `A`. None keeps the dtype and device of the initial factor.
        like_B: Tensor with the dtype and device for `B`. None keeps the dtype and device of the initial factor.

    Returns:
        `lora_A` and `lora_B`.
    """
    fused = factors[0].planned.projection.fused
    if plan.couple_roles and fused:
        factors = [_extend_to_all_rows(initial) for initial in factors]
    pairs = [_build_pair(initial, like_A, like_B, plan.form) for initial in factors]
    if not fused:
        return pairs[0]
    projections = [initial.planned.projection for initial in factors]
    rows = {p.role: plan.trained_rows(p) for p in projections}
    parts_A = {p.role: A for p, (A, _) in zip(projections, pairs, strict=True)}
    parts_B = {p.role: B for p, (_, B) in zip(projections, pairs, strict=True)}
    return FusedA(parts_A), FusedB(parts_B, rows, out_features=projections[0].shape[0])


def _extend_to_all_rows(initial: InitialFactors) -> InitialFactors:
    """Extend `B0` to all rows of a fused weight, with zeros outside the role's rows."""
    projection, B = initial.planned.projection, initial.factors.B
    extended = B.new_zeros(projection.shape[0], B.shape[1])
    write_rows(extended, projection, B)
    return InitialFactors(initial.planned, replace(initial.factors, B=extended))


def _build_pair(
    initial: InitialFactors, like_A: Tensor | None, like_B: Tensor | None, form: Form
) -> tuple[PackedFactor, PackedFactor]:
    A, B = initial.factors.A, initial.factors.B
    A = A if like_A is None else A.to(like_A)
    B = B if like_B is None else B.to(like_B)
    if not initial.planned.init.needs_anchor:
        return PlainFactor(A), PlainFactor(B)
    return (ResidualA(A), ResidualB(B)) if form is Form.RESIDUAL else (AnchoredA(A), AnchoredB(B))
