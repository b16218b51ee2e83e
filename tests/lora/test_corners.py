"""Corners: forms side by side, heads of other names, autocast, shared children."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from torch import nn

import ailora
from ailora.lora import inject as inject_module
from tests.families import FAMILIES

FAMILY = FAMILIES["bert"]


@pytest.mark.parametrize(("first", "second"), [("anchored", "residual"), ("residual", "anchored")])
def test_the_residual_form_lives_alone(first: str, second: str) -> None:
    model = ailora.adapt(FAMILY.model(), form=first)
    output = FAMILY.output(model)
    with pytest.raises(ailora.ModelError, match="excludes any second adapter"):
        ailora.adapt(model, adapter_name="second", form=second)
    assert torch.equal(FAMILY.output(model), output)


def test_a_dora_of_zero_rows_is_refused_and_a_lora_of_them_is_not() -> None:
    model = FAMILY.model()
    name, weight = next((n, p) for n, p in model.named_parameters() if n.endswith("query.weight"))
    with torch.no_grad():
        weight[[1, 3]] = 0
    with pytest.raises(ailora.ModelError, match=f"{name.removesuffix('.weight')}: 2 of .* rows are zero, and dora"):
        ailora.adapt(model, dora=True)
    assert torch.isfinite(FAMILY.output(ailora.adapt(model))).all()


@pytest.mark.parametrize("model_type", ["bart", "t5"])
def test_heads_of_other_names_train_and_are_saved(model_type: str) -> None:
    sizes = {
        "bart": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
        "t5": {"d_model": 32, "d_ff": 48, "num_layers": 1, "num_heads": 4, "d_kv": 8},
    }
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4} if model_type == "bart" else {}
    config = tf.AutoConfig.for_model(model_type, **sizes[model_type], **heads, vocab_size=64)
    model = ailora.adapt(tf.AutoModelForSequenceClassification.from_config(config), rank=4)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("classification_head" in name for name in trained)


def test_adapting_inside_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        inside = ailora.adapt(FAMILY.model(), rank=4)
    outside = ailora.adapt(FAMILY.model(), rank=4)
    for name, tensor in outside.state_dict().items():
        if "lora_" in name:
            assert torch.allclose(inside.state_dict()[name], tensor, atol=1e-6), name


class _Shared(nn.Module):
    """A parent that holds one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.wq = nn.Linear(8, 8)
        self.again = self.wq
        self.wv = nn.Linear(8, 8)


def test_a_failure_keeps_both_names_of_a_shared_module(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _Shared()
    layer = model.wq
    monkeypatch.setattr(inject_module, "_get_planned_layers", lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(RuntimeError, match="no"):
        ailora.adapt(model, rank=2, role_names={"wq": "query", "wv": "value"})
    assert model.wq is layer
    assert model.again is layer


@pytest.mark.parametrize(
    "name",
    [
        "forward",
        "keys",
        "__class__",
        "training",
        "a.b",
        "",
        "lora_",
        "../up",
        "a/b",
        "a\0b",
        "n" * 300,
        "weight",
        None,
        5,
        [],
    ],
)
def test_a_name_that_no_adapter_can_have_leaves_the_model_as_it_was(name: object) -> None:
    model = FAMILY.model()
    output = FAMILY.output(model)
    with pytest.raises(ailora.InputError, match=r"adapter_name .* cannot be used"):
        ailora.adapt(model, rank=2, adapter_name=name)  # type: ignore[arg-type]
    assert torch.equal(FAMILY.output(model), output)
    assert not any("lora" in key for key in model.state_dict())
