"""Starts: dead directions, tied weights, batches."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch import nn

import ailora
from ailora.inits import Factors
from ailora.lora import initial_factors
from ailora.lora.initial_factors import InitialFactors
from ailora.lora.inject import get_metadata
from ailora.lora.lora_config import build_training_config
from ailora.lora.set_factors import set_factors
from tests.families import FAMILIES, train

FAMILY = FAMILIES["bert"]


@pytest.mark.parametrize("pruned", ["a head", "everything"])
def test_no_direction_starts_dead(pruned: str) -> None:
    """A pruned value projection has singular values of zero: its directions get a size, and they train."""
    model = FAMILY.model()
    weight = model.bert.encoder.layer[0].attention.self.value.weight
    with torch.no_grad():
        weight[: 8 if pruned == "a head" else None] = 0
    adapted = ailora.adapt(model, rank=4)
    layer = adapted.bert.encoder.layer[0].attention.self.value
    A, B = layer.lora_A["default"], layer.lora_B["default"]
    assert A.anchor.norm(dim=1).min() > 0
    assert B.anchor.norm(dim=0).min() > 0
    assert get_metadata(adapted).floored == {"bert.encoder.layer.0.attention.self.value": 4}
    before = FAMILY.output(adapted)
    train(adapted, FAMILY, steps=1)
    assert A.delta.norm(dim=1).min() > 0
    assert B.delta.norm(dim=0).min() > 0
    assert not torch.equal(FAMILY.output(adapted), before)


def test_ordinary_weights_keep_their_singular_values() -> None:
    for family in ("bert", "llama", "minilm"):
        assert get_metadata(ailora.adapt(FAMILIES[family].model(), rank=4)).floored == {}


class _Tied(nn.Module):
    """Two attention layers with one set of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleDict({"wq": nn.Linear(8, 8), "wv": nn.Linear(8, 8)})
        self.second = nn.ModuleDict({"wq": nn.Linear(8, 8), "wv": nn.Linear(8, 8)})
        for name in ("wq", "wv"):
            self.second[name].weight = self.first[name].weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in (self.first, self.second):
            x = x + block["wv"](torch.tanh(block["wq"](x)))
        return x


@pytest.mark.parametrize("form", ["anchored", "residual"])
def test_tied_weights_are_decomposed_once_and_subtracted_once(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    calls: list[torch.Size] = []
    real = ailora.Spectral.factors

    def counted(self: ailora.Spectral, weight: torch.Tensor, rank: int, **options: object) -> object:
        calls.append(weight.shape)
        return real(self, weight, rank, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ailora.Spectral, "factors", counted)
    model = _Tied()
    x = torch.randn(3, 8)
    with torch.no_grad():
        expected = model(x)
        adapted = ailora.adapt(model, rank=2, form=form, role_names={"wq": "query", "wv": "value"})
        assert torch.allclose(adapted(x), expected, atol=1e-6)
    assert len(calls) == 2


@pytest.mark.parametrize("policy", ["ailora", "lora", {"query": {"init": "principal", "size": "unit"}}])
def test_batches_give_what_one_by_one_gives(monkeypatch: pytest.MonkeyPatch, policy: str | dict[str, object]) -> None:
    """On a GPU equal shapes are decomposed at once; here the same code runs on the CPU."""

    def anchors() -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        adapted = ailora.adapt(FAMILIES["llama"].model(), policy, rank=4)
        return {name: tensor for name, tensor in adapted.state_dict().items() if "lora_" in name}

    one_by_one = anchors()
    monkeypatch.setattr(initial_factors, "_batch_size", lambda _: 2)
    batched = anchors()
    assert batched.keys() == one_by_one.keys()
    for name, tensor in one_by_one.items():
        assert torch.allclose(batched[name], tensor, atol=1e-6), name


def test_all_tensors_of_a_factor_are_on_the_device_of_the_layer() -> None:
    """DDP broadcasts buffers on the device of the model. Here the device `meta` stands for an accelerator."""
    model = FAMILY.model()
    plan = ailora.make_plan(model, rank=2, form="residual")
    peft_model = get_peft_model(model, build_training_config(plan, model)).to("meta")
    for planned in plan.adapters:
        out, in_ = planned.projection.shape
        initial = InitialFactors(planned, Factors(torch.ones(2, in_), torch.ones(out, 2)))
        layer = peft_model.get_base_model().get_submodule(planned.projection.module)
        set_factors(layer, [initial], "default", plan)
    tensors = [*peft_model.named_parameters(), *peft_model.named_buffers()]
    assert {name: str(tensor.device) for name, tensor in tensors if not tensor.is_meta} == {}
