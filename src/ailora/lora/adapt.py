"""Adapt a model: decompose the weights of every planned projection, and give it its adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from ailora.inits import Policy
from ailora.lora.initial_factors import InitialFactors, compute_initial_factors
from ailora.lora.inject import attach, get_base_model, get_metadata, prepare, validate_free_name
from ailora.lora.rank_broadcast import as_first_rank
from ailora.lora.residual import Residual, compute_residuals
from ailora.plan.adapter_metadata import AdapterMetadata
from ailora.plan.adapter_plan import Form, Plan
from ailora.plan.make_plan import make_plan
from ailora.weights.base_weight import base_layer, fingerprint
from ailora.weights.weight_source import checkpoint_source, model_source


def adapt(
    model: nn.Module,
    policy: Policy | str | Mapping[str, Any] = "ailora",
    *,
    adapter_name: str = "default",
    weights_from: Path | str | None = None,
    **plan_options: Any,
) -> PeftModel:
    """Adapt a pretrained model: `make_plan` and `apply_plan` in one call.

    The result is an ordinary `peft.PeftModel`; `print(ailora.get_plan(model))` says how many projections of each role
    it adapts, and so does the logger `ailora`. At the start its outputs equal the base model's bit for bit, the base
    weights are untouched, and every `save_pretrained` writes a stock PEFT adapter for the base model. Not so with
    `form="residual"`, which changes the base (`save_adapter` converts it), nor with `dora` in half precision.

    Args:
        model: the base model, or a `PeftModel` that gets one more adapter.
        policy: a preset (`ailora`, `reversed`, `pissa`, `milora`, `lora`), `{role: init}`, or a `Policy`.
        adapter_name: PEFT's name for the adapter.
        weights_from: as `apply_plan`.
        **plan_options: as `make_plan`: rank, alpha, roles, role_names, modules, form, dropout, rslora, dora,
            modules_to_save, task_type, couple_roles.

    Raises:
        InputError, ModelError: as `make_plan` and `apply_plan`; the model is then as it was.
    """
    validate_free_name(model, adapter_name)
    plan = make_plan(get_base_model(model), policy, **plan_options)
    return apply_plan(model, plan, adapter_name=adapter_name, weights_from=weights_from)


def apply_plan(
    model: nn.Module, plan: Plan, *, adapter_name: str = "default", weights_from: Path | str | None = None
) -> PeftModel:
    """Give every planned projection its adapter.

    Nothing is half done: if anything fails, the model is as it was. The global random state is as before. Where
    torch.distributed runs several ranks, all of them call this, and have the start that the first one computes.

    Args:
        model: the base model that the plan was made for, or a `PeftModel` of it that gets one more adapter.
        plan: from `make_plan` or `Plan.from_dict`.
        adapter_name: PEFT's name for the adapter.
        weights_from: folder of safetensors files, or one such file, whose weights are decomposed in place of the
            model's: the unquantized checkpoint of a quantized model.

    Raises:
        ModelError: the name is taken, a planned module is missing or has another shape, a weight has no decomposition.
        InputError: the adapter name cannot be used.
    """
    built = prepare(model, plan, adapter_name=adapter_name)
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    source = model_source(built)
    if weights_from is not None:
        layers = {module: base_layer(built, module) for module in plan.modules}
        source = checkpoint_source(get_base_model(model), weights_from, layers)
    from_checkpoint = weights_from is not None
    starts = as_first_rank(
        lambda: compute_initial_factors(built, plan, generator, source, from_checkpoint=from_checkpoint)
    )
    residuals = compute_residuals(built, starts, source) if plan.form is Form.RESIDUAL else []
    sidecar = as_first_rank(lambda: _sidecar(built, plan, starts, residuals=residuals, weights_from=weights_from))
    return attach(model, plan, starts, adapter_name=adapter_name, sidecar=sidecar, residuals=residuals)


def _sidecar(
    base: nn.Module,
    plan: Plan,
    starts: list[InitialFactors],
    *,
    residuals: list[Residual],
    weights_from: Path | str | None,
) -> AdapterMetadata:
    return AdapterMetadata.of(
        plan,
        {module: fingerprint(base_layer(base, module), module) for module in plan.modules},
        floored={s.planned.projection.name: int(s.factors.floored) for s in starts if s.factors.floored},
        base_model=getattr(base, "name_or_path", None) or None,
        weights_from=None if weights_from is None else str(weights_from),
        quantization_errors={module: made.errors for made in residuals if made.errors for module in made.modules},
    )


def get_plan(model: nn.Module, adapter_name: str = "default") -> Plan:
    """The plan behind an adapter that this process put on a model.

    Raises:
        ModelError: the model has no such adapter of ours.
    """
    return Plan.from_dict(get_metadata(model, adapter_name).plan)
