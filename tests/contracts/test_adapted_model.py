"""What every adapted model promises, on a BERT, a RoBERTa, a Llama (grouped-query), a T5, a ViT and the real MiniLM."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter
from torch import nn

import ailora
from ailora.lora import AnchoredFactor
from tests.families import DEVICE, FAMILIES, RANK, Family, train

# PEFT asks a property that transformers deprecates while it builds a PeftModel.
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture
def adapted(family: Family) -> PeftModel:
    return adapt(family)


def adapt(family: Family, policy: object = "ailora", *, model: nn.Module | None = None, **options: object) -> PeftModel:
    model = family.model() if model is None else model
    return ailora.adapt(model, policy, **{"rank": RANK, **family.options, **options})


def anchored(model: nn.Module) -> dict[str, AnchoredFactor]:
    return {name: m for name, m in model.named_modules() if isinstance(m, AnchoredFactor)}


def layers(model: nn.Module) -> dict[str, LoraLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}


def base_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-6) -> bool:
    """Equal to `tolerance`, relative to the largest output."""
    return bool((actual - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1))


def with_base_head(family: Family, model: nn.Module) -> nn.Module:
    """The model with its untrained head: PEFT's `unload` keeps a trained one, which is no part of the base."""
    head = {k: v for k, v in family.model().state_dict().items() if k.startswith("classifier")}
    model.load_state_dict(head, strict=False)
    return model


def update(layer: LoraLayer, name: str = "default") -> torch.Tensor:
    return layer.get_delta_weight(name).detach()


# --- the start ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [*ailora.PRESETS, "every role"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train with dropout"])
def test_the_start_equals_the_base_bit_for_bit(family: Family, policy: str, dtype: torch.dtype, training: bool) -> None:
    base = family.model().to(dtype).train(training)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in family.inputs().items()}
    options: dict[str, object] = {"dropout": 0.3}
    if policy == "every role":
        policy, roles = "pissa", sorted({p.role for p in ailora.find_projections(base)})
        options["roles"] = roles
    model = adapt(family, policy, model=copy.deepcopy(base), **options).train(training)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, base(**inputs).logits)


def test_query_anchors_are_principal_and_value_anchors_minor(family: Family, adapted: PeftModel) -> None:
    """Projectors onto the anchors' rows and columns against LAPACK in float64, through another library."""
    import numpy as np

    seen = set()
    for planned in ailora.get_plan(adapted).adapters:
        layer = adapted.get_base_model().get_submodule(planned.projection.module)
        U, _, Vh = np.linalg.svd(layer.base_layer.weight.detach().double().cpu().numpy(), full_matrices=False)
        A0, B0 = layer.lora_A["default"].anchor.double(), layer.lora_B["default"].anchor.double()
        ends = {"query": slice(0, RANK), "value": slice(len(U.T) - RANK, None)}
        if len(Vh) > RANK:
            ends["value"] = slice(len(Vh) - RANK, len(Vh))
        for role, rows in ends.items():
            right = np.linalg.norm(Vh[rows].T @ Vh[rows] - _projector(A0.T), 2)
            left = np.linalg.norm(U[:, rows] @ U[:, rows].T - _projector(B0), 2)
            same = role == planned.projection.role
            assert max(right, left) <= 1e-4 if same else min(right, left) > 0.5
        seen.add(planned.projection.role.value)
    assert seen == {"query", "value"}


def _projector(columns: torch.Tensor) -> object:
    basis = torch.linalg.qr(columns).Q
    return (basis @ basis.T).cpu().numpy()


def test_adapting_leaves_the_base_and_the_random_state_alone(family: Family) -> None:
    model = family.model()
    before, random_state = base_state(model), torch.get_rng_state()
    adapted = adapt(family, "lora", model=model)
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, layer in layers(adapted.get_base_model()).items():
        assert torch.equal(layer.get_base_layer().weight, before[f"{name}.weight"])


# --- what trains ---------------------------------------------------------------------------------------------------


def test_only_the_differences_train(family: Family, adapted: PeftModel) -> None:
    before = base_state(adapted)
    anchors = {name: m.anchor.clone() for name, m in anchored(adapted).items()}
    optimizer = train(adapted, family)
    assert anchors
    for name, module in anchored(adapted).items():
        assert torch.equal(module.anchor, anchors[name])
        assert module.delta.abs().max() > 0
    heads = ("modules_to_save", ".delta")
    for name, parameter in adapted.named_parameters():
        if not any(part in name for part in heads):
            assert torch.equal(parameter, before[name]), name
            assert parameter not in optimizer.state
    with_state = {id(p) for p in optimizer.state}
    assert with_state == {id(p) for p in adapted.parameters() if p.requires_grad}
    plan = ailora.get_plan(adapted)
    assert plan.trainable == sum(m.delta.numel() for m in anchored(adapted).values())


def test_the_anchor_is_never_trainable(family: Family, adapted: PeftModel, tmp_path: Path) -> None:
    def check() -> None:
        assert anchored(adapted)
        for module in anchored(adapted).values():
            assert not module.anchor.requires_grad
            assert [name for name, _ in module.named_parameters()] == ["delta"]

    adapted.save_pretrained(tmp_path)
    with adapted.disable_adapter():
        check()
    check()
    adapted.add_adapter("other", LoraConfig(r=2, target_modules=adapted.peft_config["default"].target_modules))
    check()
    adapted.set_adapter("other")
    check()
    adapted.set_adapter("default")
    check()
    adapted.load_adapter(tmp_path, "third", is_trainable=True)
    check()
    adapted.load_adapter(tmp_path, "default", is_trainable=True)
    check()
    adapted.requires_grad_(True)
    check()


def test_the_update_is_the_papers_formula(family: Family) -> None:
    """`dW = s (B A - B0 A0)` with A = A0 + dA, B = B0 + dB, against a plain evaluation in float64."""
    model = adapt(family, alpha=6.0, rslora=True)
    train(model, family)
    for planned in ailora.get_plan(model).adapters:
        layer = model.get_base_model().get_submodule(planned.projection.module)
        A0, dA = (t.double() for t in (layer.lora_A["default"].anchor, layer.lora_A["default"].delta))
        B0, dB = (t.double() for t in (layer.lora_B["default"].anchor, layer.lora_B["default"].delta))
        expected = 6.0 / RANK**0.5 * ((B0 + dB) @ (A0 + dA) - B0 @ A0)
        # Rounding of one product of inner length 2r.
        bound = 4 * RANK * EPS * (B0.norm() + dB.norm()) * (A0.norm() + dA.norm())
        assert (update(layer) - expected).norm() <= bound


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("policy", ["ailora", "lora"])
def test_the_file_loads_in_stock_peft(family: Family, tmp_path: Path, policy: str, low_cpu_mem_usage: bool) -> None:
    model = adapt(family, policy)
    train(model, family)
    ailora.save_adapter(model, tmp_path)
    base = family.model()
    loaded = PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
    assert not anchored(loaded)
    assert close(family.output(loaded), family.output(model))
    rank = RANK if policy == "lora" else 2 * RANK
    assert {layer.lora_A["default"].weight.shape[0] for layer in layers(loaded).values()} == {rank}


def test_the_file_loads_through_auto_peft_model(family: Family, tmp_path: Path) -> None:
    path = family.save(tmp_path / "base")
    torch.manual_seed(3)
    model = adapt(family, model=type(family.model()).from_pretrained(path).to(DEVICE).eval())
    train(model, family)
    model.save_pretrained(tmp_path / "adapter")
    loaded = family.auto.from_pretrained(tmp_path / "adapter").to(DEVICE).eval()
    assert close(family.output(loaded), family.output(model))


def test_the_start_is_in_the_file_and_has_no_effect(family: Family, adapted: PeftModel, tmp_path: Path) -> None:
    base = family.model()
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(family.model(), tmp_path).eval()
    assert torch.equal(family.output(loaded), family.output(base))
    state = get_peft_model_state_dict(adapted)
    assert all("anchor" not in key and "delta" not in key for key in state)


def test_a_loaded_file_continues_bit_for_bit(family: Family, adapted: PeftModel, tmp_path: Path) -> None:
    train(adapted, family)
    adapted.save_pretrained(tmp_path)
    again = adapt(family)
    again.load_adapter(tmp_path, "default", is_trainable=True)
    for (name, mine), theirs in zip(anchored(adapted).items(), anchored(again).values(), strict=True):
        assert torch.equal(mine.anchor, theirs.anchor), name
        assert torch.equal(mine.delta, theirs.delta), name
    train(adapted, family)
    train(again, family)
    assert torch.equal(family.output(again), family.output(adapted))


def test_rounding_the_file_to_bfloat16_loses_under_one_percent(family: Family, adapted: PeftModel) -> None:
    train(adapted, family)
    for layer in layers(adapted).values():
        A, B = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        rounded = layer.scaling["default"] * (B.bfloat16().double() @ A.bfloat16().double())
        exact = layer.scaling["default"] * (B.double() @ A.double())
        assert (rounded - exact).norm() <= 0.01 * exact.norm()


def test_a_stock_trainers_first_step_equals_ours(family: Family, adapted: PeftModel, tmp_path: Path) -> None:
    adapted.save_pretrained(tmp_path)
    stock = PeftModel.from_pretrained(family.model(), tmp_path, is_trainable=True)
    for model in (adapted, stock):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        family.loss(model).backward()
        optimizer.step()
    for name, layer in layers(adapted.get_base_model()).items():
        theirs = stock.get_base_model().get_submodule(name)
        A, B = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
        mine_A, mine_B = layer.lora_A["default"], layer.lora_B["default"]
        for actual, expected in (
            (A[:RANK], mine_A.anchor),
            (A[RANK:], mine_A.delta),
            (B[:, :RANK], mine_B.delta),
            (B[:, RANK:], mine_B.anchor),
        ):
            assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-7 * expected.abs().max().item()), name


@pytest.mark.parametrize("policy", ["reversed", "ordinary"])
def test_a_file_of_another_start_is_refused(family: Family, adapted: PeftModel, tmp_path: Path, policy: str) -> None:
    other = adapt(family, "lora", rank=2 * RANK) if policy == "ordinary" else adapt(family, policy)
    train(other, family)
    other.save_pretrained(tmp_path)
    train(adapted, family)
    before = base_state(adapted)
    with pytest.raises(ailora.AnchorMismatchError, match=r"lora_[AB]\.default: .*anchor in the file differs"):
        adapted.load_adapter(tmp_path, "default")
    for name, parameter in adapted.named_parameters():
        assert torch.equal(parameter, before[name])


def test_a_damaged_part_of_a_file_changes_nothing(family: Family, adapted: PeftModel) -> None:
    """Only the last module is of another start: the first ones are not loaded either."""
    state = {key: value.clone() for key, value in get_peft_model_state_dict(adapted).items()}
    last = [key for key in state if "lora_B" in key][-1]
    state[last] = torch.randn_like(state[last])
    train(adapted, family)
    before = base_state(adapted)
    with pytest.raises(ailora.AnchorMismatchError, match=last.split(".lora_B")[0].rsplit(".", 3)[-1]):
        set_peft_model_state_dict(adapted, state)
    for name, parameter in adapted.named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("rank", [RANK, 3 * RANK], ids=["same rank", "larger rank"])
def test_hotswap_into_a_live_adapter_is_refused(family: Family, tmp_path: Path, rank: int) -> None:
    """PEFT writes a swapped factor into `.weight.data`; with a larger rank it replaces the tensor."""
    headless = {"task_type": "FEATURE_EXTRACTION"} if family.auto is AutoPeftModelForSequenceClassification else {}
    model = ailora.adapt(family.model(), rank=RANK, **headless)
    ailora.adapt(family.model(), rank=rank, **headless).save_pretrained(tmp_path)
    train(model, family)
    output = family.output(model)
    with pytest.raises(ailora.ModelError, match="anchored factor cannot be written"):
        hotswap_adapter(model, str(tmp_path), "default")
    assert torch.equal(family.output(model), output)


# --- the life of a PEFT model --------------------------------------------------------------------------------------


def test_disable_and_unload_give_the_base_bit_for_bit(family: Family, adapted: PeftModel) -> None:
    expected = family.output(family.model())
    train(adapted, family)
    assert not torch.equal(family.output(adapted), expected)
    with adapted.disable_adapter():
        assert torch.equal(family.output(adapted), expected)
    unloaded = adapted.unload()
    assert not layers(unloaded)
    with_base_head(family, unloaded)
    assert torch.equal(family.output(unloaded), expected)


def test_merging_gives_the_adapted_output(family: Family, adapted: PeftModel) -> None:
    train(adapted, family)
    expected = family.output(adapted)
    adapted.merge_adapter()
    assert close(family.output(adapted), expected, 1e-5)
    adapted.unmerge_adapter()
    assert close(family.output(adapted), expected, 1e-5)
    assert close(family.output(adapted.merge_and_unload()), expected, 1e-5)


def test_a_second_adapter_lives_beside_it(family: Family, adapted: PeftModel, tmp_path: Path) -> None:
    train(adapted, family)
    first = family.output(adapted)
    ailora.adapt(adapted, "reversed", adapter_name="second", rank=2, **family.options)
    assert adapted.active_adapter == "second"
    train(adapted, family)
    second = family.output(adapted)
    adapted.set_adapter("default")
    assert torch.equal(family.output(adapted), first)
    adapted.set_adapter("second")
    assert torch.equal(family.output(adapted), second)
    folder = ailora.save_adapter(adapted, tmp_path, adapter_name="second")
    loaded = PeftModel.from_pretrained(family.model(), folder).eval()
    assert close(family.output(loaded), second)
    adapted.delete_adapter("default")
    assert torch.equal(family.output(adapted), second)


@pytest.mark.parametrize("combination", ["cat", "svd"])
def test_weighted_adapters_add_updates(family: Family, combination: str) -> None:
    # PEFT adds weighted adapters only where no head is trained whole.
    headless = {"task_type": "FEATURE_EXTRACTION"} if family.auto is AutoPeftModelForSequenceClassification else {}
    model = ailora.adapt(family.model(), rank=RANK, **headless)
    train(model, family)
    ailora.adapt(model, "reversed", adapter_name="second", rank=RANK, **headless)
    train(model, family)
    options = {} if combination == "cat" else {"svd_rank": 4 * RANK}
    model.add_weighted_adapter(["default", "second"], [0.5, 2.0], "sum", combination, **options)
    for layer in layers(model).values():
        parts = (0.5 * update(layer, "default").double(), 2.0 * update(layer, "second").double())
        actual = layer.get_delta_weight("sum").double()
        assert (actual - sum(parts)).norm() <= 1e-5 * max(part.norm() for part in parts)


def test_copies_and_pickles_are_equal(family: Family, adapted: PeftModel) -> None:
    train(adapted, family)
    expected = family.output(adapted)
    assert torch.equal(family.output(copy.deepcopy(adapted)), expected)
    assert torch.equal(family.output(pickle.loads(pickle.dumps(adapted))), expected)


# --- other forms ---------------------------------------------------------------------------------------------------


def test_the_residual_form_is_the_papers(family: Family) -> None:
    base = family.model()
    model = adapt(family, form="residual", alpha=6.0)
    for planned in ailora.get_plan(model).adapters:
        layer = model.get_base_model().get_submodule(planned.projection.module)
        weight = base.get_submodule(planned.projection.module).weight.detach().double()
        U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
        rows = slice(0, RANK) if planned.projection.role == "query" else slice(len(S) - RANK, len(S))
        part = (U[:, rows] * S[rows]) @ Vh[rows]
        tolerance = 16 * EPS * S[0]
        assert torch.linalg.matrix_norm(update(layer) - part, 2) <= tolerance
        assert torch.linalg.matrix_norm(layer.get_base_layer().weight - (weight - part), 2) <= tolerance
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert torch.allclose(A.norm(dim=1), B.norm(dim=0), rtol=1e-4)
    assert close(family.output(model), family.output(base), 1e-5)


def test_the_residual_form_trains_as_the_anchored_form(family: Family) -> None:
    residual, reference = adapt(family, form="residual"), adapt(family)
    for model in (residual, reference):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        for _ in range(3):
            family.loss(model).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert close(family.output(residual), family.output(reference), 1e-4)


def test_the_residual_form_exports_the_stock_file(family: Family, tmp_path: Path) -> None:
    model = adapt(family, form="residual")
    train(model, family)
    ailora.save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(family.model(), tmp_path).eval()
    assert close(family.output(loaded), family.output(model), 1e-5)
    restored = ailora.restore_base(model)
    assert close(family.output(restored), family.output(family.model()), 1e-5)


@pytest.mark.parametrize("form", ["anchored", "stock"])
def test_restoring_an_untouched_base_leaves_it_untouched(family: Family, form: str) -> None:
    expected = family.output(family.model())
    model = adapt(family, form=form)
    train(model, family)
    restored = ailora.restore_base(model)
    assert torch.equal(family.output(restored), expected)
    assert restored.state_dict().keys() == family.model().state_dict().keys()


@pytest.mark.parametrize("form", ["anchored", "stock", "residual"])
def test_a_base_with_a_merged_adapter_is_not_restored(family: Family, form: str) -> None:
    model = adapt(family, form=form)
    train(model, family)
    model.merge_adapter()
    with pytest.raises(ailora.ModelError, match="is merged into the base weights: call unmerge_adapter"):
        ailora.restore_base(model)
    model.unmerge_adapter()
    restored = ailora.restore_base(model)
    assert close(family.output(restored), family.output(family.model()), 1e-5)


def test_the_stock_form_is_the_file(family: Family, adapted: PeftModel) -> None:
    stock = adapt(family, form="stock")
    ours, theirs = get_peft_model_state_dict(adapted), get_peft_model_state_dict(stock)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert torch.equal(family.output(stock), family.output(family.model()))


def test_dora_starts_exact_trains_and_reloads(family: Family, tmp_path: Path) -> None:
    model = adapt(family, dora=True)
    assert torch.equal(family.output(model), family.output(family.model()))
    train(model, family)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(family.model(), tmp_path).eval()
    assert close(family.output(loaded), family.output(model))
    assert close(family.output(model.merge_and_unload()), family.output(loaded), 1e-5)
