"""The residual form: `W_res = W - s B0 A0` in the place of every adapted weight, quantized again where W is."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ailora.errors import ModelError
from ailora.lora.initial_factors import InitialFactors
from ailora.plan.adapter_plan import Plan
from ailora.weights.base_weight import (
    base_layer,
    is_stored_transposed,
    read_weight,
    relative_error,
    weight_key,
    write_rows,
)
from ailora.weights.quantized import dequantized, find_storage, requantized, set_parts, stored_parts, validate_quantizer
from ailora.weights.weight_source import Source


class LossyResidualWarning(UserWarning):
    """A residual weight was rounded, or quantized, so that much of what was subtracted is lost."""


@dataclass(frozen=True)
class Residual:
    """What takes the place of one stored weight.

    Attributes:
        modules: the modules that share the weight.
        made: `W_res` (out, in) in the dtype of W, or a layer that holds it quantized.
        errors: of a quantized weight, the relative error of the model's weight before and after: of `W`, and of
            `W_res + s B0 A0`, against the weight that was decomposed.
    """

    modules: tuple[str, ...]
    made: Tensor | nn.Module
    errors: tuple[float, float] | None

    @torch.no_grad()
    def write(self, base: nn.Module, undo: ExitStack) -> None:
        """Overwrite the weight in the model, which carries its adapters by now; `undo` learns how to put it back."""
        layers = [base_layer(base, module) for module in self.modules]
        if isinstance(self.made, Tensor):
            weight: Any = layers[0].weight
            undo.callback(_copy, weight.data, weight.detach().clone())
            _copy(weight.data, self.made.T if is_stored_transposed(layers[0]) else self.made)
            return
        for layer in layers:
            storage = find_storage(layer)
            assert storage is not None
            undo.callback(set_parts, layer, stored_parts(layer, storage))
            set_parts(layer, stored_parts(self.made, storage))


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source)


def validate_residual_form(base: nn.Module, plan: Plan) -> None:
    """Refuse weights that cannot be overwritten: quantized ones that cannot be quantized again, and shared ones whose
    other users do not get the same start.

    Raises:
        ModelError: which ones, and why.
    """
    subtracted: dict[int, dict[str, tuple[object, ...]]] = {}
    for module, group in plan.modules.items():
        layer = base_layer(base, module)
        if not any(planned.init.anchored for planned in group):
            continue
        if storage := find_storage(layer):
            validate_quantizer(layer, storage, base, module)
        elif layer._parameters.get("weight") is None:
            raise ModelError(f"{module}: its weight is computed, not stored, so that nothing can be subtracted from it")
        parts = tuple((p.projection.rows, p.init, p.rank, p.scaling) for p in group)
        subtracted.setdefault(weight_key(layer), {})[module] = parts
    for name, module in base.named_modules():
        users = subtracted.get(weight_key(module), {})
        first = next(iter(users), None)
        if first and users.get(name.removesuffix(".base_layer")) != users[first]:
            raise ModelError(
                f"{name} shares the weight of {first}, from which the residual form subtracts, but has no adapter that "
                "starts alike: use form='anchored'"
            )


def compute_residuals(base: nn.Module, starts: Sequence[InitialFactors], source: Source) -> list[Residual]:
    """The residual of every weight that has an anchored start, each weight once; the model is not changed.

    Args:
        base: the base model.
        starts: what is subtracted.
        source: where the decomposed weights came from.
    """
    by_weight: dict[int, list[InitialFactors]] = {}
    for start in starts:
        if start.planned.init.anchored:
            layer = base_layer(base, start.planned.projection.module)
            by_weight.setdefault(weight_key(layer), []).append(start)
    residuals = [_residual(base, group, source) for group in by_weight.values()]
    _warn_of_quantization(residuals)
    return residuals


def _residual(base: nn.Module, starts: list[InitialFactors], source: Source) -> Residual:
    modules = tuple(dict.fromkeys(start.planned.projection.module for start in starts))
    layer = base_layer(base, modules[0])
    stored = read_weight(layer, modules[0])
    storage = find_storage(layer)
    # What a plain weight holds must come back exactly; a quantized one may come from its checkpoint.
    weight = stored if storage is None else source(modules[0])
    subtracted = _subtracted(weight, starts)
    exact = weight.to(subtracted.dtype) - subtracted
    if storage is None:
        made = exact.to(stored.dtype)
        warn_of_rounding(made, exact, subtracted, modules[0])
        return Residual(modules, made, None)
    packed = requantized(layer, storage, exact, base)
    after = dequantized(packed, storage, modules[0]).to(subtracted.dtype) + subtracted
    return Residual(modules, packed, (relative_error(weight, stored), relative_error(weight, after)))


def _subtracted(weight: Tensor, starts: list[InitialFactors]) -> Tensor:
    """`s B0 A0` on the rows of each role, in the dtype of the factors (float32 or float64)."""
    whole = torch.zeros_like(weight, dtype=starts[0].factors.A.dtype)
    # Tied layers start alike, and one weight is subtracted from once.
    for start in {start.planned.projection.rows: start for start in starts}.values():
        part = start.planned.scaling * (start.factors.B @ start.factors.A)
        write_rows(whole, start.planned.projection, part.to(whole.device))
    return whole


def warn_of_rounding(made: Tensor, exact: Tensor, subtracted: Tensor, module: str) -> None:
    """Warn where a residual weight, stored, has lost much of what was subtracted."""
    moved = subtracted.norm()
    lost = float((made.to(exact.dtype) - exact).norm() / moved) if moved > 0 else 0.0
    if lost > 1e-3:
        warnings.warn(
            f"{module}: storing W - s B0 A0 as {made.dtype} loses {lost:.0%} of the subtracted part; use float32 "
            "weights or form='anchored'",
            LossyResidualWarning,
            stacklevel=6,
        )


def _warn_of_quantization(residuals: list[Residual]) -> None:
    errors = [residual.errors for residual in residuals if residual.errors]
    if errors:
        before, after = (sum(error[i] for error in errors) / len(errors) for i in (0, 1))
        warnings.warn(
            f"the residual form quantized {len(errors)} weights again. Their mean relative error was {before:.2%}, "
            f"with the adapter it is {after:.2%}; ailora.json has each. The file is for the untouched base, where it "
            "differs from this model by as much. form='anchored' has no such error",
            LossyResidualWarning,
            stacklevel=5,
        )
