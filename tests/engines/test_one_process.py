"""What trainers do to a model in one process: recomputed activations, accumulated gradients, autocast, compilation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ailora
from tests.engines.checks import fused_base
from tests.engines.training import base, examples

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:`{name}` is deprecated:FutureWarning")
    for name in ("is_gradient_checkpointing", "gradient_checkpointing_enable")
]
IDS = torch.stack([example["input_ids"] for example in examples()[:4]])


@pytest.fixture(params=[base, fused_base], ids=["separate", "fused"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    """An adapted model that has left its start."""
    adapted = ailora.adapt(request.param(), rank=4, task_type="CAUSAL_LM").train()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05, generator=generator)
    return adapted


def gradients(model: nn.Module, *batches: Tensor) -> dict[str, Tensor]:
    """Of the mean loss over batches of one size."""
    model.zero_grad()
    for batch in batches or (IDS,):
        (model(input_ids=batch, labels=batch).loss / max(1, len(batches))).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def validate_close(these: dict[str, Tensor], those: dict[str, Tensor], tolerance: float) -> None:
    assert these.keys() == those.keys()
    assert these
    for name, tensor in these.items():
        assert (tensor - those[name]).norm() <= tolerance * those[name].norm(), name


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputed_activations_give_the_same_gradients(model: nn.Module, use_reentrant: bool) -> None:
    expected = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    validate_close(gradients(model), expected, 1e-5)


def test_accumulated_gradients_are_those_of_the_whole_batch(model: nn.Module) -> None:
    validate_close(gradients(model, *IDS.chunk(2)), gradients(model), 1e-5)


def test_autocast_computes_in_bfloat16_and_keeps_gradients_in_float32(model: nn.Module) -> None:
    expected = gradients(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    validate_close(found, expected, 0.1)


def test_a_layer_compiles_as_one_graph(model: nn.Module) -> None:
    layer = next(m for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer"))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 32)
    results = []
    for function in (layer, compiled):
        layer.zero_grad()
        function(x).square().sum().backward()
        results.append({name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None})
    assert torch.allclose(compiled(x), layer(x), rtol=1e-5, atol=1e-6)
    validate_close(results[1], results[0], 1e-5)
