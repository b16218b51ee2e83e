"""Training methods: ailora's policies, PEFT's inits, functions written by users, and full fine-tuning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ailora.errors import InputError, unknown_name
from ailora.inits import PRESETS, Kaiming, Policy, parse_policy

_FULL = "full"
_PEFT_PREFIX = "peft:"
#: PEFT's inits that subtract the product of scaling and initial factors, `s B0 A0`, from the base weights.
_OVERWRITING_INITS = ("pissa", "olora", "lora_ga", "corda")
_PEFT_INITS = ("lora", "gaussian", "orthogonal", "mica", "eva", *_OVERWRITING_INITS)
#: PiSSA by randomized SVD, with the number of iterations in the name.
_PISSA_NITER = re.compile(r"pissa_niter_[1-9]\d*")


@dataclass(frozen=True)
class AiloraPolicy:
    """Training of low-rank factors, initialized by a policy of ailora: a preset, or a mapping from role to init.

    Attributes:
        policy: Init of each role.
    """

    policy: Policy

    def __str__(self) -> str:
        return self.policy.name


@dataclass(frozen=True)
class PeftInit:
    """Init of PEFT, applied to the projections of a plan with their ranks and scalings.

    Attributes:
        name: Value of PEFT's `init_lora_weights`; `lora` selects PEFT's default.
    """

    name: str

    def __str__(self) -> str:
        return _PEFT_PREFIX + self.name

    @property
    def policy(self) -> Policy:
        """Policy for planning ranks and scalings, by default for query and value. PEFT computes the factors instead."""
        # `Kaiming` is a placeholder without an anchor.
        return Policy(str(self), default=Kaiming())

    @property
    def overwrites_base(self) -> bool:
        """Whether the init subtracts the initial `s B0 A0` from the base weights."""
        return self.name in _OVERWRITING_INITS or _PISSA_NITER.fullmatch(self.name) is not None

    @property
    def freezes_B(self) -> bool:
        """Whether only `A` is trained."""
        return self.name == "mica"


@dataclass(frozen=True)
class CustomFunction:
    """Function `(model, context) -> model` written by the user.

    Attributes:
        module: Dotted name of the module.
        name: Name of the function in the module.
    """

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"


@dataclass(frozen=True)
class FullFineTuning:
    """Full fine-tuning, without an adapter."""

    def __str__(self) -> str:
        return _FULL


Method = AiloraPolicy | PeftInit | CustomFunction | FullFineTuning


def parse_method(policy: str | Mapping[str, Any]) -> Method:
    """Parse the value of `adapter.policy`.

    Args:
        policy: Name of a preset, `full`, `peft:NAME`, `package.module:function`, or a mapping from role to init.

    Returns:
        The method.

    Raises:
        InputError: The name is unknown, or the function's path is malformed.
    """
    if not isinstance(policy, str):
        return AiloraPolicy(parse_policy(policy))
    if policy == _FULL:
        return FullFineTuning()
    if policy.startswith(_PEFT_PREFIX):
        return _parse_peft_init(policy)
    if ":" in policy:
        return _parse_function(policy)
    if policy not in PRESETS:
        raise unknown_name("policy", policy, [*PRESETS, _FULL, *_list_peft_policies(), "package.module:function"])
    return AiloraPolicy(PRESETS[policy])


def _parse_peft_init(policy: str) -> PeftInit:
    name = policy.removeprefix(_PEFT_PREFIX)
    if name not in _PEFT_INITS and not _PISSA_NITER.fullmatch(name):
        raise unknown_name("policy", policy, _list_peft_policies())
    return PeftInit(name)


def _list_peft_policies() -> list[str]:
    return [_PEFT_PREFIX + name for name in (*_PEFT_INITS, "pissa_niter_N")]


def _parse_function(policy: str) -> CustomFunction:
    module, _, name = policy.partition(":")
    if not all(part.isidentifier() for part in module.split(".")) or not name.isidentifier():
        raise InputError(f"adapter.policy must be 'peft:NAME' or 'package.module:function', got {policy!r}")
    return CustomFunction(module, name)
