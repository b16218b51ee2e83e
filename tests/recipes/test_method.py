"""What `adapter.policy` names."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

import ailora
from ailora.inits import PRESETS, Policy, Spectral
from ailora.recipes.config.method import AiloraPolicy, CustomFunction, FullFineTuning, Method, PeftInit, parse_method
from ailora.roles import Role
from ailora.spectral import Band


@pytest.mark.parametrize(
    ("policy", "method"),
    [
        ("ailora", AiloraPolicy(PRESETS["ailora"])),
        ({"query": "minor"}, AiloraPolicy(Policy("custom", {Role.QUERY: Spectral(Band.MINOR)}))),
        ("full", FullFineTuning()),
        ("peft:pissa_niter_4", PeftInit("pissa_niter_4")),
        ("package.module:function", CustomFunction("package.module", "function")),
    ],
)
def test_a_policy_names_a_method(policy: str | Mapping[str, object], method: Method) -> None:
    assert parse_method(policy) == method
    if isinstance(policy, str):
        assert str(method) == policy


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("ailra", "did you mean 'ailora'"),
        ("peft:pisa", "did you mean 'peft:pissa'"),
        ("peft:pissa_niter_0", "unknown policy"),
        ("module.py:function:", "must be .peft:NAME. or .package.module:function., got"),
        ("", "unknown policy ''"),
        ({}, "adapts no role"),
    ],
)
def test_an_unknown_method_is_refused(policy: str | Mapping[str, object], message: str) -> None:
    with pytest.raises(ailora.InputError, match=message):
        parse_method(policy)


def test_peft_inits_say_what_they_do_to_the_base() -> None:
    overwriting = ["lora", "eva", "mica", "pissa", "pissa_niter_2", "olora", "lora_ga", "corda"]
    assert [name for name in overwriting if PeftInit(name).overwrites_base] == overwriting[3:]
