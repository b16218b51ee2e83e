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
        for_file: Whether the ranks are those of the saved factors, 2r with an anchor. Otherwise, they are the ranks r
            of the plan.

    Returns:
        The configuration.
    """
    options = plan.options
    ranks = {module: sum(a.file_rank if for_file else a.rank for a in group) for module, group in plan.modules.items()}
    alphas = {
        module: group[0].scaling * (math.sqrt(ranks[module]) if options.rslora else ranks[module])
        for module, group in plan.modules.items()
    }
    default_rank, rank_pattern = _default_and_exceptions(ranks)
    default_alpha, alpha_pattern = _default_and_exceptions(alphas)
    return LoraConfig(
        r=default_rank,
        lora_alpha=_whole(default_alpha),
        rank_pattern=rank_pattern,
        alpha_pattern={name: _whole(alpha) for name, alpha in alpha_pattern.items()},
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
    # Only the residual form trains factors of rank r. In the other forms, PEFT sees the factors of the file.
    return build_lora_config(plan, model, for_file=plan.form is not Form.RESIDUAL)


def _whole(alpha: float) -> int:
    """Convert an integral alpha to `int`, and return any other alpha unchanged."""
    # Some loaders accept only integers. PEFT declares `int`, but also computes with floats, which rsLoRA needs.
    return cast(int, int(alpha) if alpha == int(alpha) else alpha)


def _target_modules(targets: Iterable[str], model: nn.Module) -> list[str] | str:
    """Return the shortest `target_modules` for exactly the targets."""
    # An entry of a list matches the module with this full name, and modules whose names end with a dot and the entry.
    # PEFT reads a string as a regular expression for full names.
    modules = set(targets)
    names = [name for name, _ in model.named_modules()]
    for candidates in (sorted({name.rpartition(".")[2] for name in modules}), sorted(modules)):
        ends = tuple(f".{c}" for c in candidates)
        if {name for name in names if name in candidates or name.endswith(ends)} == modules:
            return candidates
    # A list would also adapt any module whose name ends with the name of a target.
    return "|".join(sorted(_escape(name).replace(".", r"\.") for name in modules))


def _escape(name: str) -> str:
    """Escape operators in a module's name. Ordinary names stay the same, for loaders that do not expect a pattern."""
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
            # PEFT matches a key with the end of a name. `^` limits the match to the full name.
            key = _escape(leaf) if len(by_leaf[leaf]) == 1 else f"^{_escape(module)}"
            exceptions[key] = value
    return default, exceptions
