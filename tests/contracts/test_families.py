"""What every family of the catalog promises, on tiny models made from the families' own configurations."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

import ailora
from ailora.roles.catalog import FAMILIES
from tests.contracts.test_adapted_model import close
from tests.tiny import tiny_inputs, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

#: Its modeling file is remote code.
REMOTE = {"chatglm"}
RANK = 2


@cache
def _made(model_type: str) -> nn.Module:
    return tiny_model(model_type)


def run(model: nn.Module, model_type: str) -> list[Tensor]:
    """Every tensor of a model's output."""
    with torch.no_grad():
        output = model(**tiny_inputs(model_type))
    return [value for value in output.values() if isinstance(value, Tensor)]


def test_how_many_families_are_tried() -> None:
    assert len(FAMILIES.keys() - REMOTE) >= 42


@pytest.mark.parametrize("model_type", sorted(FAMILIES.keys() - REMOTE))
def test_every_family_starts_exact_and_saves_a_stock_file(model_type: str, tmp_path: Path) -> None:
    base = copy.deepcopy(_made(model_type))
    expected = run(base, model_type)
    model = ailora.adapt(base, rank=RANK, task_type=None).eval()
    adapted = {p.projection.role.value for p in ailora.plan_of(model).adapters}
    assert adapted == {"query", "value"}
    assert all(torch.equal(a, b) for a, b in zip(run(model, model_type), expected, strict=True))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".delta"):
                parameter.normal_(std=0.1, generator=generator)
    moved = run(model, model_type)
    assert not all(torch.equal(a, b) for a, b in zip(moved, expected, strict=True))
    ailora.save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(_made(model_type)), tmp_path).eval()
    assert all(close(a, b, 1e-4) for a, b in zip(run(loaded, model_type), moved, strict=True))
