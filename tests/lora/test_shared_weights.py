"""One weight in several places: tied modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn

import ailora
from ailora.lora import initial_factors
from tests.families import FAMILIES, train

LLAMA = FAMILIES["llama"]


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
    real = initial_factors._compute_factors

    def count(batch: list, *arguments: object) -> list:
        seen.extend(decomposition.planned.projection.name for decomposition in batch)
        return real(batch, *arguments)

    monkeypatch.setattr(initial_factors, "_compute_factors", count)
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


@pytest.mark.parametrize(
    "options",
    [
        {"modules": r"layers\.0\."},
        {"rank": {r"layers\.0": 4, "": 2}},
    ],
    ids=["one of two tied layers", "two ranks"],
)
def test_a_weight_that_not_all_users_adapt_alike_is_not_subtracted_from(options: dict) -> None:
    model = tied()
    expected = LLAMA.output(model)
    with pytest.raises(ailora.ModelError, match=r"shares the weight of model\.layers\.0|different initial factors"):
        ailora.adapt(model, **{"rank": 4, **options}, form="residual")
    assert torch.equal(LLAMA.output(model), expected)
    ailora.adapt(model, **{"rank": 4, **options})


def test_a_head_that_is_tied_to_the_embedding_is_not_subtracted_from() -> None:
    model = LLAMA.model()
    with pytest.raises(ailora.ModelError, match=r"embed_tokens shares the weight of lm_head"):
        ailora.adapt(model, "pissa", rank=4, role_names={"lm_head$": "output"}, roles=["output"], form="residual",
                     modules="lm_head")  # fmt: skip


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
    with pytest.raises(ailora.ModelError, match="the weight is computed from other tensors"):
        ailora.adapt(ailora.restore_base(adapted), rank=4, form="residual")
