"""Build PEFT's `LoraConfig` from a plan."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeVar, cast

from peft import LoraConfig
from torch import nn

from ailora.plan.adapter_plan import REGEX_OPERATORS, Form, Plan
from ailora.weights.base_weight import base_layer, is_stored_transposed

Number = TypeVar("Number", int, float)


def build_lora_config(plan: Plan, model: nn.Module, *, for_file: bool = True) -> LoraConfig:
    """Build a `LoraConfig` for exactly the plan's modules, with their ranks and scalings.

    Args:
        plan: Adapter settings of every projection.
        model: The base model; its module names limit how far `target_modules` can be shortened.
        for_file: Whether to use the ranks of the saved factors: 2r if the adapter has an anchor (frozen initial
            factors), else r. Otherwise, the ranks are r for all adapters.

    Returns:
        The configuration.
    """
    options = plan.options
    # A fused module has an adapter for each role. Together, they are one LoRA module with the sum of their ranks.
    ranks = {
        module: sum(adapter.file_rank if for_file else adapter.rank for adapter in adapters)
        for module, adapters in plan.modules.items()
    }
    # The alpha gives the planned scaling at the LoRA module's rank. The adapters of a module have equal scalings.
    alphas = {
        module: adapters[0].scaling * (math.sqrt(ranks[module]) if options.rslora else ranks[module])
        for module, adapters in plan.modules.items()
    }
    default_rank, rank_pattern = _default_and_exceptions(ranks)
    default_alpha, alpha_pattern = _default_and_exceptions(alphas)
    return LoraConfig(
        r=default_rank,
        lora_alpha=_int_if_integral(default_alpha),
        rank_pattern=rank_pattern,
        alpha_pattern={name: _int_if_integral(alpha) for name, alpha in alpha_pattern.items()},
        target_modules=_target_modules(ranks, model),
        lora_dropout=options.dropout,
        fan_in_fan_out=all(is_stored_transposed(base_layer(model, module)) for module in ranks),
        use_rslora=options.rslora,
        use_dora=options.dora,
        modules_to_save=list(options.modules_to_save) or None,
        task_type=options.task_type,
    )


def build_training_config(plan: Plan, model: nn.Module) -> LoraConfig:
    """Build the `LoraConfig` with which PEFT adapts the model for training."""
    # In the residual form, PEFT's layers hold factors of rank r. In the other forms, they hold the factors of the file.
    return build_lora_config(plan, model, for_file=plan.form is not Form.RESIDUAL)


def _int_if_integral(alpha: float) -> int:
    """Convert an integral alpha to `int`, and return any other alpha unchanged."""
    # Some loaders accept only integers. PEFT declares `int`, but also computes with floats, which rsLoRA needs.
    return cast(int, int(alpha) if alpha == int(alpha) else alpha)


def _target_modules(targets: Iterable[str], model: nn.Module) -> list[str] | str:
    """Return the shortest `target_modules` that match exactly the targets."""
    # An entry of a list matches the module with this full name, and modules whose names end with a dot and the entry.
    # PEFT reads a string as a regular expression for full names.
    modules = set(targets)
    names = [name for name, _ in model.named_modules()]
    last_components = {name.rpartition(".")[2] for name in modules}
    for entries in (sorted(last_components), sorted(modules)):
        suffixes = tuple(f".{entry}" for entry in entries)
        matches = {name for name in names if name in entries or name.endswith(suffixes)}
        if matches == modules:
            return entries
    # Even a list of full names matches other modules, whose names end with a dot and a full name.
    return "|".join(sorted(_escape(name).replace(".", r"\.") for name in modules))


def _escape(name: str) -> str:
    """Escape regular expression operators in a module's name, except dots.

    Names without other operators stay unchanged, for loaders that do not expect a pattern.
    """
    return "".join(f"\\{char}" if char in REGEX_OPERATORS else char for char in name)


def _default_and_exceptions(values: Mapping[str, Number]) -> tuple[Number, dict[str, Number]]:
    """Return the most common value, and a pattern with the values of all other modules.

    The key of a module in the pattern is the last component of its name if all modules with the same last component
    have the same value, else its full name.
    """
    default = Counter(values.values()).most_common(1)[0][0]
    by_leaf: dict[str, set[Number]] = {}
    for module, value in values.items():
        by_leaf.setdefault(module.rpartition(".")[2], set()).add(value)
    exceptions = {}
    for module, value in values.items():
        leaf = module.rpartition(".")[2]
        if value != default:
            # PEFT matches a key, a regular expression, against the end of a name. `^` requires the full name.
            key = _escape(leaf) if len(by_leaf[leaf]) == 1 else f"^{_escape(module)}"
            exceptions[key] = value
    return default, exceptions
