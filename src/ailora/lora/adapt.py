"""Adapt a model: plan its adapters, decompose the planned weights, and inject the factors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

from ailora.distributed import compute_and_broadcast_from_rank0
from ailora.inits import PolicySpec
from ailora.lora.adapter_name import validate_adapter_name
from ailora.lora.base_model import get_base_model
from ailora.lora.initial_factors import InitialFactors, compute_initial_factors
from ailora.lora.inject import get_metadata, inject, resolve_planned_weights
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

    The result is an ordinary `peft.PeftModel`. Before training, it computes bit for bit the outputs of the base model.
    Base weights never change, and `save_pretrained` writes a stock PEFT adapter for the base model. There are two
    exceptions. `form="residual"` changes the base weights; use `save_adapter` to write an adapter for the original
    weights. With `dora` in half precision, the outputs before training differ from those of the base model by rounding.

    `print(ailora.get_plan(model))` shows the number of adapted projections for each role. The logger `ailora` reports
    the same.

    Args:
        model: The base model, or a `PeftModel` to which an adapter is added.
        policy: A preset (`ailora`, `reversed`, `pissa`, `milora`, `lora`), `{role: init}`, or a `Policy`.
        rank: The rank r, or `{role or regex: rank}`; the first matching key counts.
        alpha: The numerator of the scaling, or `{role or regex: alpha}`. None means alpha = rank, a scaling of 1, or of
            sqrt(r) with `rslora`.
        roles: The roles to adapt. None means the roles in the policy, or query and value if the policy names no role.
        role_names: `{regex: role}` for modules without a naming rule.
        modules: A regular expression to search for in module names. Only matching modules are adapted.
        form: Representation of the update during training: `anchored`, `stock` or `residual`; see `docs/concepts.md`.
        dropout: Dropout probability of the adapter's input, in [0, 1).
        rslora: Scale by alpha / sqrt(r) instead of alpha / r.
        dora: Also train magnitudes (DoRA). Not available in the residual form.
        modules_to_save: Names of modules to train in full. None means the new heads that PEFT would keep frozen.
        task_type: PEFT's task type, such as `SEQ_CLS` or `CAUSAL_LM`. None infers it from the model's class.
        couple_roles: Let each adapter of a fused weight train all rows of the weight, not just the rows of its role.
        adapter_name: PEFT's name for the adapter.
        weights_from: See `apply_plan`.

    Returns:
        The adapted model.

    Raises:
        InputError, ModelError: See `make_plan` and `apply_plan`. The model is then unchanged.

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
    """Inject an adapter into every planned projection.

    If an error is raised, the model is unchanged. The global random state never changes. Under torch.distributed, call
    this function on every rank; all ranks start from the initial factors of rank 0.

    Args:
        model: The base model for which the plan was made, or its `PeftModel`, to which an adapter is added.
        plan: A plan returned by `make_plan` or `Plan.from_dict`.
        adapter_name: PEFT's name for the adapter.
        weights_from: Unquantized checkpoint to decompose, for a model with quantized weights: a folder of safetensors
            files, a single file, or the hub id of a cached model. None decomposes the weights in the model.

    Returns:
        The adapted model.

    Raises:
        ModelError: The name is taken, a planned module is missing or has an unexpected shape, a weight cannot be
            decomposed or has changed since an earlier adapter was added, the model is adapted, quantized or distributed
            in a way that excludes the plan, or PEFT cannot adapt the model as planned.
        InputError: The adapter name cannot be used, or the checkpoint `weights_from` cannot be read.

    Examples:
        >>> from ailora import make_plan
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4))
        >>> adapted = apply_plan(model, make_plan(model, "pissa", rank=4))
        >>> sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        512
    """
    weights = resolve_planned_weights(model, plan, adapter_name=adapter_name)
    base = get_base_model(model)
    source: WeightSource = BaseWeight.read
    if weights_from is not None:
        source = open_checkpoint_source(base, weights_from, weights)
    factors = compute_shared_factors(plan, weights, source)
    residuals = compute_residuals(weights, factors) if plan.form is Form.RESIDUAL else []
    metadata = compute_and_broadcast_from_rank0(
        lambda: _build_metadata(plan, weights, factors, base=base, weights_from=weights_from)
    )
    return inject(model, plan, factors, adapter_name=adapter_name, metadata=metadata, residuals=residuals)


def compute_shared_factors(
    plan: Plan, weights: Mapping[str, BaseWeight], source: WeightSource = BaseWeight.read
) -> list[InitialFactors]:
    """Compute the initial factors of every planned adapter, equal bit for bit on all ranks.

    Args:
        plan: Adapter settings of every projection.
        weights: Base weight of each module; not modified.
        source: Function that returns the matrix to decompose for a base weight.

    Returns:
        The initial factors computed on rank 0, in the plan's order.

    Raises:
        ModelError: See `compute_initial_factors`.
    """
    # With a copy of the global generator, random factors depend on the caller's seed, and the global state is kept.
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    # All ranks use the factors of rank 0: rounding differs between machines, but replicas must have equal anchors.
    return compute_and_broadcast_from_rank0(lambda: compute_initial_factors(plan, weights, source, generator))


def get_plan(model: nn.Module, adapter_name: str = "default") -> Plan:
    """Return the plan of an adapter that ailora added to the model in this process.

    Args:
        model: A model returned by `adapt`, `apply_plan` or `resume`.
        adapter_name: PEFT's name for the adapter.

    Returns:
        The plan.

    Raises:
        ModelError: ailora has added no adapter of this name to the model, the adapter was removed, or the model is the
            wrapper of a `PeftModel`, such as a compiled model.

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
    fingerprints = {module: weight.fingerprint() for module, weight in weights.items()}
    # Numbers of singular values that the init has raised to a minimum.
    floored = {
        initial.planned.projection.name: int(initial.factors.floored) for initial in factors if initial.factors.floored
    }
    return AdapterMetadata.from_plan(
        plan,
        fingerprints,
        floored=floored,
        base_model=getattr(base, "name_or_path", None) or None,
        model_config=getattr(base, "config", None),
        weights_from=None if weights_from is None else str(weights_from),
    )
