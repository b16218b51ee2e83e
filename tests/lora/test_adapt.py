"""Applying a plan: all or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from peft.tuners.lora import LoraModel
from safetensors.torch import load_file
from torch import nn

import ailora
from ailora.lora import inject as inject_module
from tests.families import FAMILIES
from tests.tiny_models import tiny_model

FAMILY = FAMILIES["bert"]


def snapshot(model: nn.Module) -> tuple[Any, ...]:
    """Everything of a model that adapting could change."""
    modules = {name: id(module) for name, module in model.named_modules()}
    parameters = {n: (id(p), p.requires_grad, p.detach().clone()) for n, p in model.named_parameters()}
    return modules, parameters, hasattr(model, "peft_config"), torch.get_rng_state()


def assert_unchanged(model: nn.Module, before: tuple[Any, ...]) -> None:
    modules, parameters, marked, random_state = snapshot(model)
    assert modules == before[0]
    assert parameters.keys() == before[1].keys()
    for name, (identity, flag, value) in parameters.items():
        assert (identity, flag) == before[1][name][:2], name
        assert torch.equal(torch.nan_to_num(value), torch.nan_to_num(before[1][name][2])), name
    assert marked == before[2]
    assert torch.equal(random_state, before[3])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_weight_in_the_last_module_changes_nothing(bad: float) -> None:
    model = FAMILY.model()
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.self.value.weight[3, 4] = bad
    before = snapshot(model)
    with pytest.raises(ailora.ModelError, match=r"layer\.1\.attention\.self\.value: weight .* NaN or infinite"):
        ailora.adapt(model)
    assert_unchanged(model, before)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_a_dtype_without_a_decomposition_is_refused(dtype: torch.dtype) -> None:
    model = FAMILY.model()
    layer = model.bert.encoder.layer[0].attention.self.query
    layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(ailora.ModelError, match=f"query: weight .* of dtype {dtype} cannot be decomposed; allowed"):
        ailora.adapt(model)


def test_a_meta_model_cannot_be_adapted() -> None:
    with pytest.raises(ailora.ModelError, match="is on the meta device"):
        ailora.adapt(FAMILY.model().to("meta"))


def test_a_model_that_accelerate_offloads_is_refused_with_advice() -> None:
    model = cpu_offload(FAMILY.model(), torch.device("cpu"))
    with pytest.raises(ailora.ModelError, match=r"offloaded by accelerate: load the model on one device"):
        ailora.adapt(model)


def test_adapting_a_model_on_the_cpu_does_not_touch_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would read the random state of all of them, and warn that there are several."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: pytest.fail(f"read the state of {device}"))
    state = torch.get_rng_state()
    ailora.adapt(FAMILY.model(), rank=2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("form", ["anchored", "residual"])
@pytest.mark.parametrize("fails_at", ["_add_peft_adapter", "set_factors", "_get_planned_layers"])
def test_a_failure_inside_changes_nothing(monkeypatch: pytest.MonkeyPatch, form: str, fails_at: str) -> None:
    model = FAMILY.model()
    before = snapshot(model)
    real, calls = getattr(inject_module, fails_at), []

    def fail_late(*args: Any) -> Any:
        calls.append(real(*args))
        if len(calls) == (3 if fails_at == "set_factors" else 1):
            raise RuntimeError("out of luck")
        return calls[-1]

    monkeypatch.setattr(inject_module, fails_at, fail_late)
    with pytest.raises(RuntimeError, match="out of luck"):
        ailora.adapt(model, form=form)
    assert_unchanged(model, before)
    monkeypatch.undo()
    assert isinstance(ailora.adapt(model), PeftModel)


@pytest.mark.filterwarnings("ignore:Adapter second was active which is now deleted")
def test_a_failing_second_adapter_leaves_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ailora.adapt(FAMILY.model(), rank=4)
    before, output = snapshot(model), FAMILY.output(model)
    monkeypatch.setattr(inject_module, "_get_planned_layers", lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(RuntimeError, match="no"):
        ailora.adapt(model, "pissa", adapter_name="second", roles=["query", "key"])
    assert model.active_adapter == "default"
    assert list(model.peft_config) == ["default"]
    assert torch.equal(FAMILY.output(model), output)
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        ("adapted", "default", "already has an adapter 'default'"),
        ("inner", "second", "already has adapters: pass the PeftModel itself"),
        ("base", "a.b", "adapter_name 'a.b' cannot be used"),
        ("base", "", "adapter_name '' cannot be used"),
        ("base", "lora", "adapter_name 'lora' cannot be used"),
    ],
)
def test_names_that_cannot_be_used(model: str, name: str, message: str) -> None:
    base = FAMILY.model()
    target = base if model == "base" else ailora.adapt(base)
    with pytest.raises(ailora.AiloraError, match=message):
        ailora.adapt(target.get_base_model() if model == "inner" else target, adapter_name=name)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("name", ["1", "query", "self", "encoder", "bert", "model", "base_layer", "lora_A", "weight"])
def test_a_name_within_the_names_of_tensors_is_refused(name: str, adapted: bool) -> None:
    """PEFT would leave these tensors out of the file of every other adapter, silently."""
    model = ailora.adapt(FAMILY.model()) if adapted else FAMILY.model()
    before = snapshot(model)
    with pytest.raises(ailora.InputError, match=f"'{name}' cannot be used: names of the model's tensors contain"):
        ailora.adapt(model, adapter_name=name)
    assert_unchanged(model, before)


@pytest.mark.parametrize("name", ["1", "query", "weight"])
def test_pefts_own_methods_refuse_a_name_within_the_names_of_tensors(name: str, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["key"])
    get_peft_model(FAMILY.model(), config).save_pretrained(tmp_path)
    model = ailora.adapt(FAMILY.model())
    before = snapshot(model)
    for add in (model.add_adapter, lambda name, _: model.load_adapter(tmp_path, name)):
        with pytest.raises(ailora.InputError, match=f"'{name}' cannot be used: names of the model's tensors contain"):
            add(name, config)
        assert list(model.peft_config) == ["default"]
        assert_unchanged(model, before)


def test_an_adapter_that_peft_added_under_such_a_name_is_refused() -> None:
    model = get_peft_model(FAMILY.model(), LoraConfig(r=2, target_modules=["key"]), adapter_name="query")
    before = snapshot(model)
    with pytest.raises(ailora.ModelError, match=r"the model has an adapter 'query', and names of .* tensors contain"):
        ailora.adapt(model)
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("form", "name", "message"),
    [("anchored", "query", "'query' cannot be used"), ("residual", "second", "another adapter cannot be added")],
)
def test_a_weighted_adapter_that_is_refused_leaves_no_name(form: str, name: str, message: str, tmp_path: Path) -> None:
    """PEFT would leave the tensors with the name out of all files that are saved later, silently."""
    model = ailora.adapt(FAMILY.model(), form=form)
    saved = load_file(ailora.save_adapter(model, tmp_path / "before") / "adapter_model.safetensors")
    before = snapshot(model)
    with pytest.raises(ailora.AiloraError, match=message):
        model.add_weighted_adapter(["default"], [1.0], name)
    assert list(model.peft_config) == ["default"]
    assert_unchanged(model, before)
    again = load_file(ailora.save_adapter(model, tmp_path / "after") / "adapter_model.safetensors")
    assert again.keys() == saved.keys()
    assert all(torch.equal(tensor, saved[key]) for key, tensor in again.items())


def test_no_file_is_saved_beside_an_adapter_with_the_name_of_tensors(tmp_path: Path) -> None:
    model = ailora.adapt(FAMILY.model())
    model.peft_config["query"] = LoraConfig(r=2, target_modules=["key"])
    LoraModel.inject_adapter(model.base_model, model.get_base_model(), "query")
    with pytest.raises(ailora.ModelError, match=r"the model has an adapter 'query', and names of .* tensors contain"):
        ailora.save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    model.delete_adapter("query")
    assert ailora.save_adapter(model, tmp_path / "adapter")


def test_a_variant_of_pefts_does_not_take_its_own_name() -> None:
    """MonteCLoRA has modules of adapters beside `lora_A` and `lora_B`, as KaSA and Arrow have."""
    config = LoraConfig(r=2, target_modules=["key"], monteclora_config={"buffer_size": 1})
    model = ailora.adapt(get_peft_model(FAMILY.model(), config), rank=2, adapter_name="second")
    assert any("lora_monteclora_sampler.default" in name for name, _ in model.named_modules())
    assert list(model.peft_config) == ["default", "second"]


def test_the_parts_of_a_factor_do_not_take_names() -> None:
    """State dicts do not contain them."""
    model = ailora.adapt(ailora.adapt(FAMILY.model(), rank=2), rank=2, adapter_name="delta")
    assert list(model.peft_config) == ["default", "delta"]


def test_a_plan_for_another_model_is_refused() -> None:
    plan = ailora.make_plan(FAMILY.model(), rank=4)
    other = FAMILIES["roberta"].model()
    before = snapshot(other)
    with pytest.raises(ailora.ModelError, match=r"the plan adapts bert\.encoder.*but this Roberta"):
        ailora.apply_plan(other, plan)
    assert_unchanged(other, before)


def test_plain_loras_start_follows_the_callers_seed() -> None:
    starts = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        model = ailora.adapt(FAMILY.model(), "lora")
        starts.append(model.bert.encoder.layer[0].attention.self.query.lora_A["default"].weight.detach())
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_the_residual_form_needs_weights_that_rounding_leaves_whole() -> None:
    with pytest.raises(ailora.ModelError, match=r"of dtype torch\.bfloat16.* float32 or float64"):
        ailora.adapt(FAMILY.model().bfloat16(), form="residual")


def test_ranks_by_module_reach_peft_and_the_file(tmp_path: Any) -> None:
    rank = {r"layer\.0.*query": 2, "query": 4, "": 8}
    model = ailora.adapt(FAMILY.model(), rank=rank, alpha={"value": 16, "": 4})
    config = model.peft_config["default"]
    ailora.save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(FAMILY.model(), tmp_path)
    for planned in ailora.get_plan(model).adapters:
        layer = loaded.get_base_model().get_submodule(planned.projection.module)
        assert layer.r["default"] == 2 * planned.rank
        assert layer.scaling["default"] == planned.scaling
    assert set(config.target_modules) == {"query", "value"}


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("roles", [["up"], ["gate", "up", "down"], ["query", "value", "down"]])
def test_names_that_peft_takes_for_those_of_experts_are_refused(roles: list[str]) -> None:
    """The dense layers of a mixture of experts: PEFT converts their names, whatever way they are given."""
    model = tiny_model("deepseek_v3")
    before = snapshot(model)
    with pytest.raises(ailora.ModelError, match=r"PEFT (cannot adapt|did not adapt layers\.0\.mlp).*(experts|fused)"):
        ailora.adapt(model, "milora", rank=2, roles=roles)
    assert_unchanged(model, before)


def test_target_names_do_not_reach_other_modules() -> None:
    """BERT's output projection ends in `dense`, as its pooler does: PEFT gets whole names then."""
    model = ailora.adapt(FAMILY.model(), "pissa", roles=["output"])
    adapted = [n for n, m in model.get_base_model().named_modules() if hasattr(m, "lora_A")]
    assert adapted == [f"bert.encoder.layer.{i}.attention.output.dense" for i in (0, 1)]


def test_a_merged_adapter_is_unmerged_before_another_one_is_made() -> None:
    model = ailora.adapt(FAMILY.model(), rank=4)
    model.merge_adapter()
    with pytest.raises(ailora.ModelError, match="merged into the base weights: call unmerge_adapter"):
        ailora.adapt(model, adapter_name="second")


def test_a_peft_model_of_another_kind_is_refused() -> None:
    base = FAMILIES["llama"].model()
    model = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ailora.ModelError, match="adapters other than LoRA"):
        ailora.adapt(model, adapter_name="second")


def test_an_adapter_that_was_taken_off_is_not_saved(tmp_path: Any) -> None:
    model = ailora.adapt(FAMILY.model(), rank=4)
    model.unload()
    with pytest.raises(ailora.ModelError, match="was removed from the model"):
        ailora.save_adapter(model, tmp_path)


@pytest.mark.parametrize("alpha", [1e-40, 1e60, 1e300, 10**400, pytest.param(10**5000, id="digits")])
def test_scalings_beyond_float16_are_refused(alpha: float) -> None:
    with pytest.raises(ailora.InputError, match=r"scaling alpha / rank, here with rank 8, must be between 6.1e-05 and"):
        ailora.make_plan(FAMILY.model(), alpha=alpha)
