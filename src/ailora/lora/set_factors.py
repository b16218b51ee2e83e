"""Putting starts into PEFT's layers: as the factors that train, or as the factors of the file."""

from __future__ import annotations

from dataclasses import replace

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from ailora.lora.anchored_factor import AnchoredA, AnchoredB
from ailora.lora.fused_factor import FusedA, FusedB, PlainFactor
from ailora.lora.initial_factors import InitialFactors
from ailora.lora.packed_factor import PackedFactor
from ailora.plan.adapter_plan import Form, Plan
from ailora.weights.base_weight import write_rows
from ailora.weights.dtensor import distribute_like


def set_factors(layer: nn.Module, starts: list[InitialFactors], adapter_name: str, plan: Plan) -> None:
    """Put the starts of a module into its PEFT layer, in the dtype and on the device that PEFT chose for them."""
    assert isinstance(layer, LoraLayer)
    stock_A, stock_B = layer.lora_A[adapter_name], layer.lora_B[adapter_name]
    assert isinstance(stock_A, nn.Linear)
    assert isinstance(stock_B, nn.Linear)
    A, B = build_factors(starts, plan, like_A=stock_A.weight, like_B=stock_B.weight)
    fused = starts[0].planned.projection.fused
    if plan.form is not Form.STOCK and (fused or isinstance(A, AnchoredA)):
        layer.lora_A[adapter_name] = A.requires_grad_(stock_A.weight.requires_grad)
        layer.lora_B[adapter_name] = B.requires_grad_(stock_B.weight.requires_grad)
        return
    with torch.no_grad():
        # PEFT has split one of the two where the weight is split by tensor parallelism.
        stock_A.weight.copy_(distribute_like(A.stack(), stock_A.weight))
        stock_B.weight.copy_(distribute_like(B.stack(), stock_B.weight))
    if plan.form is Form.RESIDUAL and starts[0].planned.init.anchored:
        _keep_anchor(stock_A, stock_A.weight)
        _keep_anchor(stock_B, stock_B.weight)


def build_factors(
    starts: list[InitialFactors], plan: Plan, *, like_A: torch.Tensor | None = None, like_B: torch.Tensor | None = None
) -> tuple[PackedFactor, PackedFactor]:
    """The factors of a module in the form that trains (residual) or is filed (anchored, stock).

    Args:
        starts: those of the module: one, or one for each adapted role of a fused weight.
        plan: the plan that they are of.
        like_A: a tensor of the dtype and on the device that the factors `A` take; None: as they are.
        like_B: likewise for `B`.
    """
    fused = starts[0].planned.projection.fused
    if plan.couple_roles and fused:
        starts = [_on_all_rows(start) for start in starts]
    factors = [_factors(start, like_A, like_B, plan.form) for start in starts]
    if not fused:
        return factors[0]
    projections = [start.planned.projection for start in starts]
    rows = {p.role: plan.trained_rows(p) for p in projections}
    A = FusedA({p.role: A for p, (A, _) in zip(projections, factors, strict=True)})
    B = FusedB({p.role: B for p, (_, B) in zip(projections, factors, strict=True)}, rows, projections[0].shape[0])
    return A, B


def _on_all_rows(start: InitialFactors) -> InitialFactors:
    """A start whose `B0` reaches all rows of a fused weight, zero outside those of its role."""
    projection, B = start.planned.projection, start.factors.B
    whole = B.new_zeros(projection.shape[0], B.shape[1])
    write_rows(whole, projection, B)
    return InitialFactors(start.planned, replace(start.factors, B=whole))


def _factors(
    start: InitialFactors, like_A: torch.Tensor | None, like_B: torch.Tensor | None, form: Form
) -> tuple[PackedFactor, PackedFactor]:
    A, B = start.factors.A, start.factors.B
    A, B = A if like_A is None else A.to(like_A), B if like_B is None else B.to(like_B)
    if start.planned.init.anchored and form is not Form.RESIDUAL:
        return AnchoredA(A), AnchoredB(B)
    plain_A, plain_B = PlainFactor(A), PlainFactor(B)
    if start.planned.init.anchored:
        _keep_anchor(plain_A, A)
        _keep_anchor(plain_B, B)
    return plain_A, plain_B


def _keep_anchor(factor: nn.Module, anchor: torch.Tensor) -> None:
    """Keep a start beside a factor in the residual form, to restore the base and to write the update as a file."""
    factor.register_buffer("anchor", anchor.detach().clone(), persistent=False)
