"""A second adapter with the configuration of the first, as TRL's trainers make their reference."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import PeftModel
from torch import nn

import ailora
from ailora.lora.packed_factor import PackedFactor
from tests.contracts.test_adapted_model import close
from tests.families import FAMILIES, train
from tests.tiers import in_tiers

LLAMA = FAMILIES["llama"]


def _gpt2() -> nn.Module:
    torch.manual_seed(3)
    config = tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0)
    return tf.GPT2LMHeadModel(config).eval()


#: The query, key and value of GPT-2 are one weight.
MODELS: dict[str, Callable[[], nn.Module]] = {"llama": LLAMA.model, "gpt2": _gpt2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "separate": ("llama", {}),
    "fused": ("gpt2", {}),
    "fused, a plain part": ("gpt2", {"policy": {"query": "minor", "value": "lora"}}),
    "a plain module": ("llama", {"policy": {"query": "minor", "value": "lora"}, "rank": {"query": 2, "value": 4}}),
    "coupled": ("gpt2", {"couple_roles": True}),
    "dora": ("llama", {"dora": True}),
    "rslora": ("llama", {"rslora": True, "alpha": 3}),
    "stock": ("llama", {"form": "stock"}),
    "residual": ("llama", {"form": "residual"}),
}


def adapted(case: str, *, steps: int = 0) -> PeftModel:
    model = ailora.adapt(base(case), **{"rank": 4, **CASES[case][1]})
    train(model, LLAMA, steps=steps, rate=1e-2)
    return model.eval()


def base(case: str) -> nn.Module:
    return MODELS[CASES[case][0]]()


def add_reference(model: PeftModel) -> None:
    """What TRL 1.16 does in its DPO, KTO, RLOO and GRPO trainers."""
    model.add_adapter("ref", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)


def output(model: PeftModel, adapter: str) -> torch.Tensor:
    model.set_adapter(adapter)
    logits = LLAMA.output(model.eval())
    model.set_adapter("default")
    return logits


def trainable(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("steps", [0, 3], ids=["untrained", "trained"])
@pytest.mark.parametrize("case", CASES)
def test_the_reference_is_the_adapter_as_it_was(case: str, steps: int) -> None:
    model = adapted(case, steps=steps)
    before = trainable(model)
    start = LLAMA.output(model)
    add_reference(model)
    assert trainable(model) == before
    assert torch.equal(output(model, "ref"), start)
    assert torch.equal(output(model, "default"), start)
    train(model, LLAMA, steps=2, rate=1e-2)
    assert torch.equal(output(model, "ref"), start)
    assert not close(output(model, "default"), start, 1e-4)


@pytest.mark.parametrize("case", ["separate", "fused", "fused, a plain part", "coupled"])
def test_the_reference_of_a_start_is_the_base(case: str) -> None:
    expected = LLAMA.output(base(case))
    model = adapted(case)
    add_reference(model)
    assert torch.equal(output(model, "ref"), expected)


@pytest.mark.parametrize("case", [case for case in CASES if case != "residual"])
def test_an_added_adapter_is_not_trained(case: str) -> None:
    """As PEFT has it: without copying its parameters, it is where the first one started."""
    model = adapted(case, steps=3)
    start = output(adapted(case), "default")
    model.add_adapter("second", model.peft_config["default"])
    assert close(output(model, "second"), start)
    assert all(p.grad is None for name, p in model.named_parameters() if ".second." in name)


def test_an_added_residual_adapter_is_where_the_first_one_started() -> None:
    model = adapted("residual", steps=3)
    model.add_adapter("second", model.peft_config["default"])
    assert close(output(model, "second"), LLAMA.output(LLAMA.model()), 1e-5)


def test_training_one_leaves_the_other() -> None:
    model = adapted("separate")
    add_reference(model)
    model.set_adapter("ref")
    train(model, LLAMA, steps=2, rate=1e-2)
    assert torch.equal(output(model, "default"), LLAMA.output(LLAMA.model()))


@pytest.mark.parametrize(
    "case", in_tiers(["separate", "fused", "fused, a plain part", "a plain module", "dora"], fast=["separate", "fused"])
)
def test_both_are_saved_as_stock_adapters(case: str, tmp_path: Path) -> None:
    model = adapted(case, steps=3)
    add_reference(model)
    train(model, LLAMA, steps=2, rate=1e-2)
    model.save_pretrained(tmp_path)
    stock = PeftModel.from_pretrained(base(case), tmp_path)
    stock.load_adapter(tmp_path / "ref", "ref")
    for adapter in ("default", "ref"):
        assert torch.equal(output(stock, adapter), output(model, adapter))


def test_ours_saves_and_resumes_either(tmp_path: Path) -> None:
    model = adapted("separate", steps=3)
    add_reference(model)
    train(model, LLAMA, steps=2, rate=1e-2)
    assert ailora.get_plan(model, "ref") == ailora.get_plan(model)
    for adapter in ("default", "ref"):
        folder = ailora.save_adapter(model, tmp_path, adapter_name=adapter)
        resumed = ailora.resume(LLAMA.model(), folder)
        assert torch.equal(LLAMA.output(resumed), output(model, adapter))


@pytest.mark.parametrize("case", in_tiers(["separate", "fused"], fast=["fused"]))
@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_of_the_model_keep_both_and_can_add_one(how: Any, case: str) -> None:
    model = adapted(case, steps=3)
    early = how(model)
    for made in (model, early):
        add_reference(made)
    late = how(model)
    for made in (early, late):
        assert torch.equal(output(made, "ref"), output(model, "ref"))
        train(made, LLAMA, steps=1, rate=1e-2)
    assert torch.equal(output(model, "default"), output(model, "ref"))


def test_a_state_dict_of_both_loads() -> None:
    model, other = adapted("separate", steps=3), adapted("separate")
    for made in (model, other):
        add_reference(made)
    other.load_state_dict(model.state_dict())
    assert torch.equal(output(other, "ref"), output(model, "ref"))


def test_merging_the_reference() -> None:
    model = adapted("separate", steps=3)
    add_reference(model)
    expected = output(model, "ref")
    model.merge_adapter(["ref"])
    assert close(LLAMA.output(model), expected, 1e-5)
    model.unmerge_adapter()
    assert close(output(model, "ref"), expected, 1e-5)


def test_deleting_and_adding_again() -> None:
    model = adapted("separate", steps=3)
    add_reference(model)
    model.delete_adapter("ref")
    with pytest.raises(ailora.ModelError, match="was removed from the model"):
        ailora.get_plan(model, "ref")
    add_reference(model)
    assert torch.equal(output(model, "ref"), output(model, "default"))


def test_a_configuration_of_its_own_makes_an_adapter_of_pefts(tmp_path: Path) -> None:
    """An equal one too: a file with an equal configuration can hold factors that have no anchor."""
    model = adapted("separate")
    model.add_adapter("own", copy.deepcopy(model.peft_config["default"]))
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "loaded")
    model.add_adapter("empty", model.peft_config["default"], low_cpu_mem_usage=True)
    factors = {n: m for n, m in model.named_modules() if n.endswith((".own", ".loaded", ".empty")) and "lora_A" in n}
    assert len(factors) == 12
    assert all(type(factor) is nn.Linear for factor in factors.values())
    assert any(isinstance(factor, PackedFactor) for factor in model.modules())
