"""Corners: forms side by side, heads of other names, autocast, shared children."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import ailora
from ailora.lora import inject as inject_module
from ailora.lora import parallelism_support
from ailora.lora import residual as residual_module
from ailora.lora.initial_factors import InitialFactors, compute_initial_factors
from ailora.lora.residual import compute_residuals
from ailora.model_loading import load_on_meta
from ailora.weights.base_weight import BaseWeight, resolve_weights
from tests.families import FAMILIES, train
from tests.tiny_models import tiny_model

FAMILY = FAMILIES["bert"]


@pytest.mark.parametrize(("first", "second"), [("anchored", "residual"), ("residual", "anchored")])
def test_the_residual_form_lives_alone(first: str, second: str) -> None:
    model = ailora.adapt(FAMILY.model(), form=first)
    output = FAMILY.output(model)
    with pytest.raises(ailora.ModelError, match="excludes any second adapter"):
        ailora.adapt(model, adapter_name="second", form=second)
    assert torch.equal(FAMILY.output(model), output)


def test_nothing_of_pefts_separates_residual_weights_from_their_adapter(tmp_path: Path) -> None:
    """An adapter for the original weights would compute other outputs; without the adapter, these weights are lost."""
    base = FAMILY.model()
    original = {name: weight.clone() for name, weight in base.state_dict().items()}
    model = ailora.adapt(base, rank=4, form="residual")
    train(model, FAMILY, steps=2)
    folder = ailora.save_adapter(model, tmp_path)
    output = FAMILY.output(model.eval())
    with pytest.raises(ailora.AnchorMismatchError, match=r"a newly loaded base model with ailora\.resume"):
        model.load_adapter(str(folder), "default")
    for refused in (
        lambda: model.load_adapter(str(folder), "new"),
        lambda: model.add_adapter("new", LoraConfig(r=2, target_modules=["query"])),
        lambda: model.delete_adapter("default"),
        model.unload,
    ):
        with pytest.raises(ailora.ModelError, match=r"'default' in the residual form .* ailora\.restore_base"):
            refused()
    assert [*model.peft_config] == ["default"]
    assert torch.equal(FAMILY.output(model), output)
    restored = ailora.restore_base(model)
    for name, weight in original.items():
        assert torch.allclose(restored.state_dict()[name], weight, atol=1e-6), name


def test_a_merged_residual_adapter_can_be_unloaded() -> None:
    """Then the weights are the trained ones; adapters that are added later are restored as ever."""
    model = ailora.adapt(FAMILY.model(), rank=4, form="residual", task_type="FEATURE_EXTRACTION")
    train(model, FAMILY, steps=2)
    output = FAMILY.output(model.eval())
    model.merge_adapter()
    merged = model.unload()
    assert torch.allclose(FAMILY.output(merged), output, atol=1e-5)
    weights = {name: weight.clone() for name, weight in merged.state_dict().items()}
    again = ailora.adapt(merged, rank=4, form="residual", roles=["query"], task_type="FEATURE_EXTRACTION")
    for name, weight in ailora.restore_base(again).state_dict().items():
        assert torch.allclose(weight, weights[name], atol=1e-6), name
    with pytest.raises(ailora.ModelError, match="was removed from the model"):
        ailora.restore_base(again)


def test_one_of_two_residual_adapters_can_be_deleted() -> None:
    model = ailora.adapt(FAMILY.model(), rank=4, form="residual", task_type="FEATURE_EXTRACTION")
    model.add_adapter("ref", model.peft_config["default"])
    model.delete_adapter("ref")
    with pytest.raises(ailora.ModelError, match="cannot be deleted"):
        model.delete_adapter("default")


def test_a_base_that_merging_has_changed_gets_no_second_adapter() -> None:
    """`W + d - d` differs from `W`: the adapter would be refused by `resume` and `merge`, after its training."""
    model = ailora.adapt(FAMILY.model(), rank=4)
    train(model, FAMILY, steps=3)
    assert ailora.get_plan(ailora.adapt(model, "reversed", rank=2, adapter_name="before"), "before").adapters
    model.set_adapter("default")
    model.merge_adapter()
    model.unmerge_adapter()
    with pytest.raises(ailora.ModelError, match=r"query: .* changed since the adapter 'default' was added"):
        ailora.adapt(model, "reversed", rank=4, adapter_name="after")
    assert [*model.peft_config] == ["default", "before"]


def test_an_adapter_beside_trained_tokens_is_refused() -> None:
    """PEFT cannot save it."""
    llama = FAMILIES["llama"].model()
    model = get_peft_model(llama, LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[1, 2]))
    with pytest.raises(ailora.ModelError, match="trainable_token_indices"):
        ailora.adapt(model, rank=2, adapter_name="second")
    assert [*model.peft_config] == ["default"]


def test_without_its_only_adapter_a_model_is_to_be_unloaded() -> None:
    model = ailora.adapt(FAMILIES["llama"].model(), rank=2)
    model.delete_adapter("default")
    for refused in (ailora.adapt, ailora.get_plan, ailora.restore_base):
        with pytest.raises(ailora.ModelError, match=r"all adapters .* were deleted: .* unload\(\)"):
            refused(model)
    assert ailora.adapt(model.unload(), rank=2).active_adapter == "default"


@pytest.mark.parametrize(("wrap", "attribute"), [(torch.compile, "_orig_mod"), (nn.DataParallel, "module")])
def test_a_wrapped_model_is_refused_with_the_way_to_its_model(wrap: Any, attribute: str, tmp_path: Path) -> None:
    model = wrap(ailora.adapt(FAMILIES["llama"].model(), rank=2))
    with pytest.raises(ailora.ModelError, match=rf"pass the PeftModel itself, model\.{attribute}$"):
        ailora.get_plan(model)
    with pytest.raises(ailora.ModelError, match=rf"pass the PeftModel itself, model\.{attribute}$"):
        ailora.save_adapter(model, tmp_path)
    ailora.save_adapter(getattr(model, attribute), tmp_path)


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


def test_the_residual_form_starts_exact_inside_autocast() -> None:
    inside, outside = FAMILY.model(), FAMILY.model()
    with torch.autocast("cpu", torch.bfloat16):
        ailora.adapt(inside, rank=4, form="residual")
    ailora.adapt(outside, rank=4, form="residual")
    for name, tensor in outside.state_dict().items():
        assert torch.allclose(inside.state_dict()[name], tensor, atol=1e-6), name


def test_a_residual_is_computed_where_its_weight_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks other than 0 receive the factors on the CPU, while their weights are on a GPU."""
    model = FAMILY.model()
    plan = ailora.make_plan(model, rank=2)
    weights = resolve_weights(model, plan.modules)
    factors = compute_initial_factors(plan, weights, BaseWeight.read, torch.Generator())
    monkeypatch.setattr(BaseWeight, "read", lambda self: torch.empty(self.shape, device="meta"))
    devices = set()

    def product_on_rows(factors: list[InitialFactors], shape: tuple[int, int]) -> torch.Tensor:
        devices.update(tensor.device.type for each in factors for tensor in (each.factors.A, each.factors.B))
        return torch.empty(shape, device="meta")

    monkeypatch.setattr(residual_module, "product_on_rows", product_on_rows)
    compute_residuals(weights, factors)
    assert devices == {"meta"}


def test_a_failure_keeps_the_active_adapter(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    model = ailora.adapt(ailora.adapt(FAMILY.model(), rank=2, adapter_name="first"), rank=2, adapter_name="second")
    monkeypatch.setattr(inject_module, "_get_planned_layers", lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    recwarn.clear()
    with pytest.raises(RuntimeError, match="no"):
        ailora.adapt(model, rank=2, adapter_name="third")
    assert model.active_adapter == "second"
    assert model.active_adapters == ["second"]
    assert [*model.peft_config] == ["first", "second"]
    assert not [warning for warning in recwarn if "active" in str(warning.message)]


class _OperatorsInNames(nn.Module):
    """A parent whose children have operators of regular expressions in their names."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({"q+v": nn.Linear(8, 8), "q": nn.Linear(8, 8), "v(1)": nn.Linear(8, 8)})


def test_names_with_operators_keep_their_ranks(tmp_path: Path) -> None:
    roles = {r"q\+v": "query", r"v\(1\)": "value"}
    model = ailora.adapt(_OperatorsInNames(), "pissa", rank={"query": 2, "value": 3}, role_names=roles)
    assert [model.get_submodule(f"base_model.model.maps.{name}").r for name in ("q+v", "v(1)")] == [
        {"default": 4},
        {"default": 6},
    ]
    ailora.save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(_OperatorsInNames(), tmp_path)
    assert loaded.get_submodule("base_model.model.maps.q+v").r == {"default": 4}


def test_an_adapter_of_pefts_with_the_name_of_a_deleted_one_has_no_plan() -> None:
    model = ailora.adapt(ailora.adapt(FAMILY.model(), rank=2, adapter_name="kept"), rank=2, adapter_name="again")
    model.set_adapter("kept")
    model.delete_adapter("again")
    model.add_adapter("again", LoraConfig(r=3, target_modules=["query", "value"]))
    with pytest.raises(ailora.ModelError, match="no adapter 'again' made by ailora"):
        ailora.get_plan(model, "again")
    assert ailora.get_plan(model, "kept").adapters


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_a_state_that_is_not_finite_is_refused(factor: str, value: float) -> None:
    model = ailora.adapt(FAMILY.model(), rank=2)
    state = model.state_dict()
    key = next(key for key in state if factor in key)
    state[key] = state[key].clone()
    state[key].view(-1)[-1] = value
    with pytest.raises(ailora.AnchorMismatchError, match="training has diverged"):
        model.load_state_dict(state)


def test_fused_weights_under_tensor_parallelism_are_refused_with_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallelism_support, "any_dtensor", lambda _: True)
    for form in ("stock", "anchored"):
        with pytest.raises(ailora.ModelError, match="fused weight do not work with tensor parallelism: use DDP"):
            ailora.adapt(tiny_model("gpt2"), rank=2, form=form)
    with pytest.raises(ailora.ModelError, match="anchored form would replace them: use form='stock'"):
        ailora.adapt(FAMILY.model(), rank=2)


def test_an_empty_name_is_no_checkpoint_to_decompose() -> None:
    with pytest.raises(
        ailora.InputError, match="weights_from must be a folder, a safetensors file or a hub id, got ''"
    ):
        ailora.adapt(FAMILY.model(), rank=2, weights_from="")


def test_a_path_is_named_like_a_string(tmp_path: Path) -> None:
    with pytest.raises(ailora.InputError, match=f"^model '{tmp_path}' has no config.json$"):
        load_on_meta(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_load_into_empty_factors_does_not_round_the_loads_after_it(dtype: torch.dtype, tmp_path: Path) -> None:
    """PEFT casts these factors to the dtype of the base, and afterwards only their parameters back."""
    model = ailora.adapt(FAMILY.model().to(dtype), rank=4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_adapter(tmp_path, "default", low_cpu_mem_usage=True)
    model.load_adapter(tmp_path, "default")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
