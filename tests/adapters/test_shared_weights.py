"""One weight in several places: tied modules, and layers that PEFT replicates."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn

import ailora
from ailora.adapters import starts as starts_module
from tests.families import FAMILIES, train
from tests.tiny import tiny_model

LLAMA = FAMILIES["llama"]
LAYERS = [[0, 2], [0, 1], [1, 2]]


def tied() -> nn.Module:
    """A Llama whose two layers share their query and value weights."""
    model = LLAMA.model()
    first, second = (layer.self_attn for layer in model.model.layers)
    second.q_proj.weight, second.v_proj.weight = first.q_proj.weight, first.v_proj.weight
    return model


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The projections that are decomposed while a test runs."""
    seen: list[str] = []
    real = starts_module._factors

    def count(batch: list, generator: torch.Generator) -> list:
        seen.extend(job.planned.projection.name for job in batch)
        return real(batch, generator)

    monkeypatch.setattr(starts_module, "_factors", count)
    return seen


def test_a_tied_weight_is_decomposed_once_and_adapted_in_each_place(decomposed: list[str]) -> None:
    model = ailora.adapt(tied(), rank=4)
    assert len(decomposed) == 2
    assert torch.equal(LLAMA.output(model), LLAMA.output(tied()))
    train(model, LLAMA)
    first, second = (layer.self_attn.q_proj for layer in model.get_base_model().model.layers)
    assert torch.equal(first.lora_A["default"].anchor, second.lora_A["default"].anchor)
    assert not torch.equal(first.lora_A["default"].delta, second.lora_A["default"].delta)


def test_a_tied_weight_is_subtracted_from_once(tmp_path: Path) -> None:
    expected = LLAMA.output(tied())
    model = ailora.adapt(tied(), rank=4, form="residual")
    assert torch.allclose(LLAMA.output(model), expected, atol=1e-4)
    train(model, LLAMA)
    ailora.save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(tied(), tmp_path).eval()
    assert torch.allclose(LLAMA.output(loaded), LLAMA.output(model), atol=1e-3)
    assert torch.allclose(LLAMA.output(ailora.restore_base(model)), expected, atol=1e-4)


@pytest.mark.parametrize("form", ["anchored", "stock", "residual"])
def test_replicated_layers_share_weights_and_get_adapters_of_their_own(
    form: str, decomposed: list[str], tmp_path: Path
) -> None:
    base = LLAMA.model()
    plan = ailora.make_plan(base, rank=4, form=form, layer_replication=LAYERS)
    assert len(base.model.layers) == base.config.num_hidden_layers == 2
    assert ailora.Plan.from_json(plan.to_json()) == plan
    model = ailora.apply_plan(base, plan).eval()
    # Two layers, each with a query and a value, in four places.
    assert len(decomposed) == 4
    assert plan.counts == {"query": 4, "value": 4}
    assert len(model.get_base_model().model.layers) == 4
    start = LLAMA.output(model)
    reference = LLAMA.model()
    reference.model.layers.extend([copy.deepcopy(layer) for layer in reference.model.layers])
    for number, layer in enumerate(reference.model.layers):
        layer.self_attn.layer_idx = number
    reference.config.num_hidden_layers = 4
    assert torch.allclose(start, LLAMA.output(reference), atol=0 if form != "residual" else 1e-4)
    train(model, LLAMA)
    ailora.save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(LLAMA.model(), tmp_path).eval()
    assert len(loaded.get_base_model().model.layers) == 4
    assert torch.allclose(LLAMA.output(loaded), LLAMA.output(model), atol=1e-4)
    assert not torch.allclose(LLAMA.output(loaded), start, atol=1e-2)


def test_a_failure_gives_the_layers_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from ailora.adapters import attach as attach_module

    model = LLAMA.model()
    expected, layers = LLAMA.output(model), list(model.model.layers)
    monkeypatch.setattr(attach_module, "_require_exact_cover", lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(RuntimeError, match="no"):
        ailora.adapt(model, rank=4, layer_replication=LAYERS)
    assert [id(layer) for layer in model.model.layers] == [id(layer) for layer in layers]
    assert model.config.num_hidden_layers == 2
    assert torch.equal(LLAMA.output(model), expected)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("0-2", "is a list of ranges"),
        ([[0, 2, 3]], "is a list of ranges"),
        ([[1, 1]], "is a list of ranges"),
        ([[-1, 1]], "is a list of ranges"),
        ([[0.0, 1.0]], "is a list of ranges"),
        ([], "is a list of ranges"),
        ([[0, 5]], "index 2 is out of range"),
    ],
)
def test_ranges_that_are_none_are_refused(layers: object, message: str) -> None:
    with pytest.raises(ailora.InputError, match=message):
        ailora.make_plan(LLAMA.model(), layer_replication=layers)


def test_models_whose_layers_peft_does_not_find_are_refused() -> None:
    with pytest.raises(ailora.InputError, match="Could not locate the layers"):
        ailora.make_plan(FAMILIES["t5"].model(), layer_replication=LAYERS)


def test_layers_are_replicated_with_the_first_adapter_only() -> None:
    model = ailora.adapt(LLAMA.model(), rank=4)
    with pytest.raises(ailora.ModelError, match="give it to the first adapter only"):
        ailora.adapt(model, rank=4, adapter_name="second", layer_replication=LAYERS)


@pytest.mark.parametrize(
    "options",
    [
        {"modules": r"layers\.0\."},
        {"modules": r"layers\.[01]\.", "layer_replication": [[0, 2], [0, 2]]},
        {"rank": {r"layers\.0": 4, "": 2}},
    ],
    ids=["one of two tied layers", "two of four replicated layers", "two ranks"],
)
def test_a_weight_that_not_all_users_adapt_alike_is_not_subtracted_from(options: dict) -> None:
    model = LLAMA.model() if "layer_replication" in options else tied()
    expected = LLAMA.output(model)
    with pytest.raises(ailora.ModelError, match=r"shares the weight of model\.layers\.0|two different starts"):
        ailora.adapt(model, **{"rank": 4, **options}, form="residual")
    assert torch.equal(LLAMA.output(model), expected)
    ailora.adapt(model, **{"rank": 4, **options})


def test_a_head_that_is_tied_to_the_embedding_is_not_subtracted_from() -> None:
    model = LLAMA.model()
    with pytest.raises(ailora.ModelError, match=r"embed_tokens shares the weight of lm_head"):
        ailora.adapt(model, "pissa", rank=4, role_names={"lm_head$": "output"}, roles=["output"], form="residual",
                     modules="lm_head")  # fmt: skip


def test_a_second_adapter_of_replicated_layers_is_refused() -> None:
    """Its file would not say that the layers are replicated."""
    model = ailora.adapt(LLAMA.model(), rank=4, layer_replication=LAYERS)
    with pytest.raises(ailora.ModelError, match="would not say so, and would not load"):
        ailora.adapt(model, rank=4, adapter_name="second")


class _AsItIs(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 1.0


def test_a_weight_that_is_computed_is_nobodys_twin() -> None:
    """Parametrizations make a tensor anew at each look; its id says nothing."""
    model, plain = LLAMA.model(), ailora.adapt(LLAMA.model(), rank=4)
    for layer in model.model.layers:
        for name in ("q_proj", "v_proj"):
            nn.utils.parametrize.register_parametrization(getattr(layer.self_attn, name), "weight", _AsItIs())
    for adapted in (ailora.adapt(model, rank=4),):
        for layer, expected in zip(
            adapted.get_base_model().model.layers, plain.get_base_model().model.layers, strict=True
        ):
            anchor = layer.self_attn.v_proj.lora_A["default"].anchor
            assert torch.equal(anchor, expected.self_attn.v_proj.lora_A["default"].anchor)
    with pytest.raises(ailora.ModelError, match="its weight is computed, not stored"):
        ailora.adapt(ailora.restore_base(adapted), rank=4, form="residual")


def test_layers_whose_kinds_are_listed_are_not_replicated() -> None:
    """PEFT replicates the layers and not the list: Qwen2 would fail, Gemma 2 would mask the wrong layers."""
    for model_type in ("qwen2", "gemma2"):
        with pytest.raises(
            ailora.ModelError, match=rf"the configuration of {model_type} lists the kind of every layer"
        ):
            ailora.make_plan(tiny_model(model_type), rank=2, layer_replication=LAYERS)
