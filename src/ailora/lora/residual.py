"""Residual form of the paper: the residual weight `W_res = W - s B0 A0` replaces every adapted weight.

The paper is AILoRA (arXiv 2510.08034). `A0` and `B0` are the initial factors of the adapter, and `s` is its scaling.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ailora.errors import ModelError
from ailora.full_precision import full_precision
from ailora.lora.initial_factors import InitialFactors
from ailora.plan.adapter_plan import Plan
from ailora.weights.base_weight import BaseWeight, weight_key, write_rows


@dataclass(frozen=True)
class Residual:
    """Residual weight of a base weight.

    Attributes:
        weight: The base weight to overwrite.
        value: The residual weight `W_res` (out, in).
    """

    weight: BaseWeight
    value: Tensor

    @torch.no_grad()
    def write(self, undo: ExitStack) -> None:
        """Overwrite the weight in the layer, and register a callback with `undo` that restores the weight."""
        stored = self.weight.stored()
        undo.callback(stored.copy_, stored.clone())
        stored.copy_(self.value.T if self.weight.transposed else self.value)


def compute_residuals(weights: Mapping[str, BaseWeight], factors: Sequence[InitialFactors]) -> list[Residual]:
    """Compute the residual of every weight whose initial product `B0 A0` is not zero. The model does not change.

    Args:
        weights: Base weights by module.
        factors: Initial factors; their products `s B0 A0` are subtracted.

    Returns:
        A residual for every stored weight. Tied layers share a residual.
    """
    residuals = []
    for weight, group in _by_weight(weights, factors):
        stored = weight.read()
        # Processes other than rank 0 have received their factors on the CPU.
        on_device = [initial.to(stored.device) for initial in group]
        residuals.append(Residual(weight, stored - product_on_rows(on_device, weight.shape)))
    return residuals


@torch.no_grad()
def restore_weights(weights: Mapping[str, BaseWeight], factors: Sequence[InitialFactors]) -> None:
    """Add the products of the initial factors back to residual weights, in place: `W = W_res + s B0 A0`."""
    # `read` returns a view of a plain weight, and `validate_residual_form` refuses all other weights.
    for weight, group in _by_weight(weights, factors):
        weight.read().add_(product_on_rows(group, weight.shape))


def product_on_rows(factors: Iterable[InitialFactors], shape: tuple[int, int]) -> Float[Tensor, "out in_"]:
    """Compute `s B0 A0` for every role of a weight, and place each product in the rows of the role.

    Args:
        factors: Initial factors `B0` (rows, r) and `A0` (r, in) for each role. Equal factors of tied layers count once.
        shape: Shape (out, in) of the weight.

    Returns:
        Matrix (out, in) in the dtype of the factors.
    """
    by_rows = {initial.planned.projection.rows: initial for initial in factors}
    first = next(iter(by_rows.values())).factors.A
    product = first.new_zeros(shape)
    with full_precision(first.device):
        for initial in by_rows.values():
            part = initial.planned.scaling * (initial.factors.B @ initial.factors.A)
            write_rows(product, initial.planned.projection, part)
    return product


def validate_residual_form(base: nn.Module, plan: Plan, weights: Mapping[str, BaseWeight]) -> None:
    """Refuse weights that the residual form cannot overwrite.

    Raises:
        ModelError: A weight is computed from other tensors, quantized or in half precision, or is shared with a layer
            that has no equal adapter.
    """
    # Key of the weight -> module -> settings that determine the product to subtract. Tied layers share a key.
    settings_by_weight: dict[int, dict[str, tuple[object, ...]]] = {}
    for module, group in plan.modules.items():
        weight = weights[module]
        if not any(planned.init.needs_anchor for planned in group):
            continue
        if weight.layer._parameters.get("weight") is None and weight.quantized_format is None:
            raise ModelError(
                f"{module}: the weight is computed from other tensors, and the residual form can only change stored "
                "weights: use form='anchored'"
            )
        if weight.quantized_format is not None or weight.dtype not in (torch.float32, torch.float64):
            raise ModelError(
                f"{weight}: form='residual' needs float32 or float64 weights, because rounding in other formats would "
                "change the outputs of the model: use form='anchored'"
            )
        settings = tuple((p.projection.rows, p.init, p.rank, p.scaling) for p in group)
        settings_by_weight.setdefault(weight.key, {})[module] = settings
    for name, layer in base.named_modules():
        settings_by_module = settings_by_weight.get(weight_key(layer), {})
        first_module = next(iter(settings_by_module), None)
        if not first_module:
            continue
        # PEFT renames an adapted layer to `base_layer`, inside a module with the original name.
        module = name.removesuffix(".base_layer")
        if settings_by_module.get(module) != settings_by_module[first_module]:
            raise ModelError(
                f"{name} shares the weight of {first_module}, which the residual form would change, but has no adapter "
                "with equal initial factors: use form='anchored'"
            )


def _by_weight(
    weights: Mapping[str, BaseWeight], factors: Sequence[InitialFactors]
) -> Iterable[tuple[BaseWeight, list[InitialFactors]]]:
    """Group initial factors with a nonzero product by base weight. Tied layers are in the same group."""
    groups: dict[int, tuple[BaseWeight, list[InitialFactors]]] = {}
    for initial in factors:
        if initial.planned.init.needs_anchor:
            weight = weights[initial.planned.projection.module]
            groups.setdefault(weight.key, (weight, []))[1].append(initial)
    return groups.values()
