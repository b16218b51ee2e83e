"""Adapt a model: decompose the weights of every planned projection, and give it its adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

from ailora.distributed import compute_on_rank0_and_broadcast
from ailora.inits import PolicySpec
from ailora.lora.initial_factors import InitialFactors, compute_initial_factors
from ailora.lora.inject import get_base_model, get_metadata, inject, prepare, validate_adapter_name
from ailora.lora.residual import compute_residuals
from ailora.plan.adapter_metadata import AdapterMetadata
from ailora.plan.adapter_plan import Form, Plan
from ailora.plan.make_plan import PerModule, make_plan
from ailora.roles import Role
from ailora.weights.base_weight import BaseWeight
from ailora.weights.weight_source import WeightSource, open_checkpoint_source


def adapt(
    model: nn.Module,
    policy: PolicySpec = "ailora",
    *,
    rank: PerModule = 8,
    alpha: PerModule | None = None,
    roles: Sequence[Role | str] | None = None,
    role_names: Mapping[str, Role | str] | None = None,
    modules: str | None = None,
    form: Form | str = Form.ANCHORED,
    dropout: float = 0.0,
    rslora: bool = False,
    dora: bool = False,
    modules_to_save: Iterable[str] | None = None,
    task_type: str | None = None,
    couple_roles: bool = False,
    adapter_name: str = "default",
    weights_from: Path | str | None = None,
) -> PeftModel:
    """Adapt a pretrained model: `make_plan` and `apply_plan` in one call.

    The result is an ordinary `peft.PeftModel`; `print(ailora.get_plan(model))` shows how many projections of each role
    it adapts, and so does the logger `ailora`. At the start its outputs equal the base model's bit for bit, the base
    weights are untouched, and every `save_pretrained` writes a stock PEFT adapter for the base model. Exceptions are
    `form="residual"`, which changes the base (`save_adapter` converts it), and `dora` in half precision.

    Args:
        model: the base model, or a `PeftModel` that gets one more adapter.
        policy: a preset (`ailora`, `reversed`, `pissa`, `milora`, `lora`), `{role: init}`, or a `Policy`.
        rank: the rank r, or `{role or regex: rank}`; the first key that matches a module counts.
        alpha: likewise; None means alpha = rank, so that s = 1 (rsLoRA: s = sqrt(r)).
        roles: the roles that are adapted; None: those that the policy names, else query and value.
        role_names: `{regex: role}` for modules that no rule knows.
        modules: regular expression; only modules whose name it matches are adapted.
        form: `anchored`, `stock` or `residual`.
        dropout: probability in [0, 1).
        rslora: scaling alpha / sqrt(r) instead of alpha / r.
        dora: train magnitudes too; not in the residual form.
        modules_to_save: names of modules that are trained whole; None: the task type's usual heads.
        task_type: PEFT's name (`SEQ_CLS`, `CAUSAL_LM`, ...); None: from the model's class.
        couple_roles: let the adapter of a fused weight train all its rows, instead of each role its own.
        adapter_name: PEFT's name for the adapter.
        weights_from: see `apply_plan`.

    Returns:
        The adapted model.

    Raises:
        InputError, ModelError: see `make_plan` and `apply_plan`; the model is then as it was.

    Examples:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
        >>> adapted = adapt(model, "ailora", rank=4)
        >>> print(get_plan(adapted))
        ailora, anchored form: 1 query (principal, singular); 1 value (minor, singular); 512 trainable parameters
    """
    validate_adapter_name(model, adapter_name)
    plan = make_plan(
        get_base_model(model),
        policy,
        rank=rank,
        alpha=alpha,
        roles=roles,
        role_names=role_names,
        modules=modules,
        form=form,
        dropout=dropout,
        rslora=rslora,
        dora=dora,
        modules_to_save=modules_to_save,
        task_type=task_type,
        couple_roles=couple_roles,
    )
    return apply_plan(model, plan, adapter_name=adapter_name, weights_from=weights_from)


def apply_plan(
    model: nn.Module, plan: Plan, *, adapter_name: str = "default", weights_from: Path | str | None = None
) -> PeftModel:
    """Give every planned projection its adapter.

    If anything fails, the model is as it was. The global random state does not change. Where torch.distributed runs
    several ranks, all of them call this, and get the initial factors that the first one computes.

    Args:
        model: the base model that the plan was made for, or a `PeftModel` of it that gets one more adapter.
        plan: from `make_plan` or `Plan.from_dict`.
        adapter_name: PEFT's name for the adapter.
        weights_from: folder of safetensors files, one such file, or a hub id in the cache, whose weights are decomposed
            in place of the model's: the unquantized checkpoint of a quantized model.

    Returns:
        The adapted model.

    Raises:
        ModelError: the name is taken, a planned module is missing or has another shape, a weight has no decomposition.
        InputError: the adapter name cannot be used.

    Examples:
        >>> from ailora import make_plan
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4))
        >>> adapted = apply_plan(model, make_plan(model, "pissa", rank=4))
        >>> sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        512
    """
    weights = prepare(model, plan, adapter_name=adapter_name)
    base = get_base_model(model)
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    source: WeightSource = BaseWeight.read
    if weights_from is not None:
        source = open_checkpoint_source(base, weights_from, weights)
    factors = compute_on_rank0_and_broadcast(lambda: compute_initial_factors(plan, weights, source, generator))
    residuals = compute_residuals(weights, factors) if plan.form is Form.RESIDUAL else []
    metadata = compute_on_rank0_and_broadcast(
        lambda: _build_metadata(plan, weights, factors, base=base, weights_from=weights_from)
    )
    return inject(model, plan, factors, adapter_name=adapter_name, metadata=metadata, residuals=residuals)


def get_plan(model: nn.Module, adapter_name: str = "default") -> Plan:
    """Return the plan of an adapter that this process put on a model.

    Args:
        model: a model that `adapt`, `apply_plan` or `resume` returned.
        adapter_name: PEFT's name for the adapter.

    Returns:
        The plan.

    Raises:
        ModelError: the model has no such adapter of ours.

    Examples:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4))
        >>> [a.projection.role.value for a in get_plan(adapt(model, "ailora", rank=4)).adapters]
        ['query', 'value']
    """
    return get_metadata(model, adapter_name).parsed_plan


def _build_metadata(
    plan: Plan,
    weights: Mapping[str, BaseWeight],
    factors: Sequence[InitialFactors],
    *,
    base: nn.Module,
    weights_from: Path | str | None,
) -> AdapterMetadata:
    return AdapterMetadata.from_plan(
        plan,
        {module: weight.fingerprint() for module, weight in weights.items()},
        floored={f.planned.projection.name: int(f.factors.floored) for f in factors if f.factors.floored},
        base_model=getattr(base, "name_or_path", None) or None,
        model_config=getattr(base, "config", None),
        weights_from=None if weights_from is None else str(weights_from),
    )
