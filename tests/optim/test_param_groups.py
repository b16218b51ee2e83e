"""Which role and factor every trained parameter belongs to, in all forms."""

from __future__ import annotations

import pytest
import torch

import ailora
from ailora.optim.param_groups import role_factors
from ailora.roles import Role
from tests.families import FAMILIES
from tests.tiny_models import tiny_model

QUERY, VALUE = (Role.QUERY,), (Role.VALUE,)


@pytest.mark.parametrize("policy", ["ailora", "lora"])
@pytest.mark.parametrize(
    ("form", "dora"), [("anchored", False), ("anchored", True), ("stock", False), ("stock", True), ("residual", False)]
)
def test_every_form_of_separate_projections(policy: str, form: str, dora: bool) -> None:
    model = ailora.adapt(FAMILIES["bert"].model(), policy, rank=2, form=form, dora=dora)
    found = role_factors(model)
    trained = [n for n, p in model.named_parameters() if p.requires_grad and (".lora_A." in n or ".lora_B." in n)]
    assert list(found) == trained
    assert len(found) == 2 * len(ailora.get_plan(model).adapters)
    for name, (roles, factor) in found.items():
        assert roles == (QUERY if ".query." in name else VALUE)
        assert f".lora_{factor}.default." in name


@pytest.mark.parametrize("policy", ["ailora", "lora"])
@pytest.mark.parametrize("couple", [False, True])
def test_the_roles_of_fused_projections_have_parameters_of_their_own(policy: str, couple: bool) -> None:
    model = ailora.adapt(tiny_model("gpt2"), policy, rank=2, couple_roles=couple)
    found = role_factors(model)
    assert len(found) == 2 * len(ailora.get_plan(model).adapters)
    for name, (roles, factor) in found.items():
        assert f".lora_{factor}.default.{roles[0]}." in name
        assert len(roles) == 1


def test_in_the_stock_form_they_share_one() -> None:
    found = role_factors(ailora.adapt(tiny_model("gpt2"), rank=2, form="stock"))
    assert {factor.roles for factor in found.values()} == {(Role.QUERY, Role.VALUE)}
    assert {factor.factor for factor in found.values()} == {"A", "B"}
    found = role_factors(ailora.adapt(tiny_model("gpt2"), rank=2, form="stock", roles=("value",)))
    assert {factor.roles for factor in found.values()} == {VALUE}


def test_only_what_trains_counts() -> None:
    model = ailora.adapt(FAMILIES["bert"].model(), rank=2, modules_to_save=["classifier"], task_type="SEQ_CLS")
    assert not any("classifier" in name for name in role_factors(model))
    ailora.adapt(model, "lora", rank=2, adapter_name="other")
    assert role_factors(model) == {}
    assert all(".other." in name for name in role_factors(model, "other"))
    model.set_adapter("default")
    assert len(role_factors(model)) == 8
    with pytest.raises(ailora.ModelError, match="no adapter 'third'"):
        role_factors(model, "third")


def test_an_optimizer_finds_them() -> None:
    model = ailora.adapt(FAMILIES["bert"].model(), rank=2)
    parameters = dict(model.named_parameters())
    groups = [{"params": [parameters[name]], "lr": 1e-3} for name in role_factors(model)]
    assert len(torch.optim.AdamW(groups).param_groups) == 8
