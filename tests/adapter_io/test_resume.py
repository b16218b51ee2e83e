"""`resume`: train on from a file, with the anchor that is inside."""

from __future__ import annotations

import copy
import importlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

import ailora
from ailora import distributed
from ailora.checkpoints import init
from ailora.lora.anchored_factor import AnchoredFactor
from tests.contracts.test_adapted_model import close
from tests.families import FAMILIES, train
from tests.tiers import in_tiers

LLAMA, BERT = FAMILIES["llama"], FAMILIES["bert"]


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = state(one), state(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


RESUMED_OPTIONS = [
    {},
    {"form": "stock"},
    {"rslora": True, "alpha": 3},
    {"policy": {"query": "principal", "value": "lora"}},
]


@pytest.mark.parametrize(
    ("family", "options"),
    in_tiers(
        itertools.product(["llama", "bert", "t5"], RESUMED_OPTIONS),
        fast=[("llama", RESUMED_OPTIONS[0]), *(("bert", options) for options in RESUMED_OPTIONS[1:])],
    ),
)
def test_a_resumed_model_is_the_one_that_was_saved(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    made = FAMILIES[family]
    model = ailora.adapt(made.model(), rank=4, **options)
    train(model, made, steps=3)
    ailora.save_adapter(model, tmp_path)
    resumed = ailora.resume(made.model(), tmp_path)
    same_state(resumed, model)
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in resumed.named_parameters() if p.requires_grad} == trains
    assert ailora.get_plan(resumed) == ailora.get_plan(model)
    for each in (model, resumed):
        train(each, made, steps=3)
    same_state(resumed, model)


def test_fused_weights_resume(tmp_path: Path) -> None:
    from tests.tiny_models import tiny_model

    for couple in (False, True):
        base = tiny_model("gpt2")
        model = ailora.adapt(copy.deepcopy(base), rank=2, couple_roles=couple)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.01 * torch.randn_like(parameter)
        ailora.save_adapter(model, tmp_path / str(couple))
        same_state(ailora.resume(base, tmp_path / str(couple)), model)


def test_from_what_init_writes(tmp_path: Path) -> None:
    LLAMA.model().save_pretrained(tmp_path / "base")
    init(str(tmp_path / "base"), tmp_path / "adapter", rank=4)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    expected = LLAMA.output(model)
    resumed = ailora.resume(model, tmp_path / "adapter")
    assert torch.equal(LLAMA.output(resumed), expected)
    adapted = ailora.adapt(AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval(), rank=4)
    same_state(resumed, adapted)


def test_a_base_in_another_dtype_is_recognised(tmp_path: Path) -> None:
    LLAMA.model().to(torch.bfloat16).save_pretrained(tmp_path / "base")
    init(str(tmp_path / "base"), tmp_path / "adapter", rank=4)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype).eval()
        expected = LLAMA.output(model)
        assert torch.equal(LLAMA.output(ailora.resume(model, tmp_path / "adapter")), expected)


@pytest.mark.parametrize("saved_by", ["ailora", "peft"])
def test_the_residual_form(saved_by: str, tmp_path: Path) -> None:
    model = ailora.adapt(LLAMA.model(), rank=4, form="residual")
    train(model, LLAMA, steps=3)
    if saved_by == "ailora":
        ailora.save_adapter(model, tmp_path)
    else:
        model.save_pretrained(tmp_path)
        (tmp_path / "ailora.json").write_text(_sidecar(model))
    resumed = ailora.resume(LLAMA.model(), tmp_path)
    close(LLAMA.output(resumed), LLAMA.output(model))
    for one, other in zip(state(resumed).items(), state(model).items(), strict=True):
        assert one[0] == other[0]
        torch.testing.assert_close(one[1], other[1], rtol=1e-5, atol=1e-6)
    close(LLAMA.output(ailora.restore_base(resumed)), LLAMA.output(LLAMA.model()))


def _sidecar(model: nn.Module) -> str:
    from ailora.lora.inject import get_metadata

    return get_metadata(model).model_dump_json()


def test_from_a_checkpoint_below_the_sidecar(tmp_path: Path) -> None:
    model = ailora.adapt(LLAMA.model(), rank=4)
    train(model, LLAMA, steps=2)
    model.save_pretrained(tmp_path / "checkpoints" / "checkpoint-2")
    (tmp_path / "ailora.json").write_text(_sidecar(model))
    same_state(ailora.resume(LLAMA.model(), tmp_path / "checkpoints" / "checkpoint-2"), model)


def test_a_single_rank_resumes_without_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = ailora.adapt(LLAMA.model(), rank=2)
    ailora.save_adapter(adapted, tmp_path)

    def broadcast(*_: object) -> None:
        raise AssertionError("waits for the other ranks")

    monkeypatch.setattr(distributed, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "broadcast", broadcast)
    same_state(ailora.resume(LLAMA.model(), tmp_path), adapted)
    other = LLAMA.model()
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight.fill_(0.5)
    with pytest.raises(ailora.ModelError, match="differs from the adapter's base"):
        ailora.resume(other, tmp_path)


def test_where_no_sidecar_is_known_it_is_asked_for(tmp_path: Path) -> None:
    model = ailora.adapt(LLAMA.model(), rank=4)
    model.save_pretrained(tmp_path / "alone")
    with pytest.raises(ailora.InputError, match=r"no ailora\.json .*metadata=.*is_trainable=True"):
        ailora.resume(LLAMA.model(), tmp_path / "alone")
    ailora.save_adapter(model, tmp_path / "whole")
    same_state(ailora.resume(LLAMA.model(), tmp_path / "alone", metadata=tmp_path / "whole"), model)


def test_another_base_is_refused_and_left_alone(tmp_path: Path) -> None:
    ailora.save_adapter(ailora.adapt(LLAMA.model(), rank=4), tmp_path)
    other = LLAMA.model()
    with torch.no_grad():
        other.model.layers[1].self_attn.v_proj.weight[0, 0] += 1e-3
    before = state(other)
    with pytest.raises(ailora.ModelError, match=r"layers\.1\.self_attn\.v_proj: the weight differs"):
        ailora.resume(other, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    assert "lora" not in str(other)


def test_a_file_that_stock_peft_trained_whole_is_told_apart(tmp_path: Path) -> None:
    """Stock PEFT wakes both halves: the anchor moves, and the file is no longer an anchored one."""
    ailora.save_adapter(ailora.adapt(LLAMA.model(), rank=4), tmp_path / "start")
    model = PeftModel.from_pretrained(LLAMA.model(), tmp_path / "start", is_trainable=True)
    train(model, LLAMA, steps=2)
    model.save_pretrained(tmp_path / "trained")
    shutil.copy(tmp_path / "start" / "ailora.json", tmp_path / "trained")
    with pytest.raises(
        ailora.AnchorMismatchError, match=r"training without ailora has changed the anchor.*is_trainable=True"
    ):
        ailora.resume(LLAMA.model(), tmp_path / "trained")
    # What it was made as says what it is.
    sidecar = json.loads((tmp_path / "trained" / "ailora.json").read_text())
    sidecar["plan"]["form"] = "stock"
    (tmp_path / "trained" / "ailora.json").write_text(json.dumps(sidecar))
    close(LLAMA.output(ailora.resume(LLAMA.model(), tmp_path / "trained")), LLAMA.output(model))


@pytest.mark.parametrize("steps", in_tiers([0, 1, 50], fast=[0, 1]))
def test_a_trained_anchor_is_never_taken_for_a_moved_one(steps: int, tmp_path: Path) -> None:
    model = ailora.adapt(LLAMA.model(), rank=4)
    if steps:
        train(model, LLAMA, steps=steps, rate=5e-2)
    ailora.save_adapter(model, tmp_path)
    same_state(ailora.resume(LLAMA.model(), tmp_path), model)


def test_half_precision_files_resume(tmp_path: Path) -> None:
    model = ailora.adapt(LLAMA.model(), rank=4)
    train(model, LLAMA, steps=3)
    model.to(torch.bfloat16)
    ailora.save_adapter(model, tmp_path)
    resumed = ailora.resume(LLAMA.model(), tmp_path)
    stock = PeftModel.from_pretrained(LLAMA.model(), tmp_path)
    close(LLAMA.output(resumed), LLAMA.output(stock))


def test_resume_beside_another_adapter(tmp_path: Path) -> None:
    model = ailora.adapt(LLAMA.model(), rank=4)
    train(model, LLAMA, steps=2)
    ailora.save_adapter(model, tmp_path)
    both = ailora.adapt(LLAMA.model(), "milora", rank=2, adapter_name="first")
    resumed = ailora.resume(both, tmp_path, adapter_name="second")
    assert resumed.active_adapters == ["second"]
    assert torch.equal(LLAMA.output(resumed), LLAMA.output(model))
    assert any(isinstance(module, AnchoredFactor) for module in resumed.modules())


def test_heads_are_restored(tmp_path: Path) -> None:
    model = ailora.adapt(BERT.model(), rank=4)
    train(model, BERT, steps=3)
    ailora.save_adapter(model, tmp_path)
    assert torch.equal(BERT.output(ailora.resume(BERT.model(), tmp_path)), BERT.output(model))


class _Tokens(torch.utils.data.Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = torch.randint(0, 64, (6,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_a_trainer_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """From a checkpoint of a stock Trainer: a fresh base, resumed, and the Trainer's own state."""
    from transformers import Trainer, TrainingArguments

    def trainer(model: nn.Module, folder: str, steps: int) -> Trainer:
        arguments = TrainingArguments(
            str(tmp_path / folder),
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            save_steps=2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        return Trainer(model, arguments, train_dataset=_Tokens())

    whole = ailora.adapt(LLAMA.model(), rank=4)
    ailora.save_adapter(whole, tmp_path / "start")
    trainer(whole, "whole", 6).train()
    trainer(ailora.resume(LLAMA.model(), tmp_path / "start"), "half", 2).train()
    checkpoint = tmp_path / "half" / "checkpoint-2"
    resumed = ailora.resume(LLAMA.model(), checkpoint, metadata=tmp_path / "start")
    trainer(resumed, "half", 6).train(resume_from_checkpoint=str(checkpoint))
    same_state(resumed, whole)


def test_what_does_not_fit_leaves_the_model_alone(tmp_path: Path) -> None:
    ailora.save_adapter(ailora.adapt(LLAMA.model(), rank=4), tmp_path / "four")
    ailora.save_adapter(ailora.adapt(LLAMA.model(), rank=2), tmp_path / "two")
    ailora.save_adapter(ailora.adapt(LLAMA.model(), rank=4, roles=["query"]), tmp_path / "query")
    for sidecar in ("two", "query"):
        model = LLAMA.model()
        with pytest.raises(ailora.InputError, match="does not belong to the adapter"):
            ailora.resume(model, tmp_path / "four", metadata=tmp_path / sidecar)
        assert "lora" not in str(model)
    ailora.save_adapter(ailora.adapt(BERT.model(), rank=4), tmp_path / "bert")
    from transformers import BertForSequenceClassification

    other = BERT.model()
    wider = BertForSequenceClassification(copy.deepcopy(other.config))
    wider.classifier = nn.Linear(32, 7)
    wider.bert.load_state_dict(other.bert.state_dict())
    with pytest.raises(ailora.ModelError, match=r"classifier.* has a parameter of shape \(7,"):
        ailora.resume(wider, tmp_path / "bert")
    assert "lora" not in str(wider)


def test_a_fused_weight_that_was_trained_whole_resumes_in_the_stock_form(tmp_path: Path) -> None:
    from tests.tiny_models import tiny_inputs, tiny_model

    base = tiny_model("gpt2")
    model = ailora.adapt(copy.deepcopy(base), rank=2, form="stock")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01 * torch.randn_like(parameter)
    ailora.save_adapter(model, tmp_path)
    resumed = ailora.resume(base, tmp_path)
    with torch.no_grad():
        assert torch.equal(resumed.eval()(**tiny_inputs("gpt2"))[0], model.eval()(**tiny_inputs("gpt2"))[0])


def test_a_configuration_and_a_sidecar_that_disagree(tmp_path: Path) -> None:
    ailora.save_adapter(ailora.adapt(LLAMA.model(), rank=4), tmp_path / "one")
    ailora.save_adapter(ailora.adapt(LLAMA.model(), rank=4, alpha=64), tmp_path / "other")
    with pytest.raises(
        ailora.InputError, match=r"adapter_config\.json gives .* the scaling 1, but ailora\.json gives 16"
    ):
        ailora.resume(LLAMA.model(), tmp_path / "one", metadata=tmp_path / "other" / "ailora.json")


@pytest.mark.parametrize("form", ["anchored", "residual", "stock"])
def test_a_file_without_pefts_prefix_resumes(form: str, tmp_path: Path) -> None:
    model = ailora.adapt(LLAMA.model(), rank=4, form=form)
    train(model, LLAMA, steps=3)
    folder = ailora.save_adapter(model, tmp_path)
    file = folder / "adapter_model.safetensors"
    expected = ailora.resume(LLAMA.model(), folder)
    tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    same_state(ailora.resume(LLAMA.model(), folder), expected)


def test_a_folder_below_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = ailora.adapt(LLAMA.model(), rank=4)
    assert ailora.save_adapter(model, "~/adapter") == tmp_path / "adapter"
    same_state(ailora.resume(LLAMA.model(), "~/adapter"), model)


def test_names_that_transformers_renames_are_not_lost(tmp_path: Path) -> None:
    """Transformers renames the Swin backbone's modules of old checkpoints, and PEFT would rename the current ones."""
    from tests.tiny_models import tiny_model

    base = tiny_model("maskformer")
    model = ailora.adapt(copy.deepcopy(base), rank=2, roles=["query", "value"])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01 * torch.randn_like(parameter)
    ailora.save_adapter(model, tmp_path)
    same_state(ailora.resume(base, tmp_path), model)


@pytest.mark.parametrize("dora", [False, True])
def test_a_head_with_layers_inside_resumes_beside_another(dora: bool, tmp_path: Path) -> None:
    roberta = FAMILIES["roberta"]
    model = ailora.adapt(roberta.model(), rank=4, form="stock", dora=dora)
    train(model, roberta, steps=3)
    folder = ailora.save_adapter(model, tmp_path)
    expected = roberta.output(model)
    resumed = ailora.resume(ailora.adapt(roberta.model(), rank=2), folder, adapter_name="b")
    assert torch.equal(roberta.output(resumed), expected)


def test_a_file_without_its_head_leaves_an_adapted_model_alone(tmp_path: Path) -> None:
    model = ailora.adapt(BERT.model(), rank=4)
    file = ailora.save_adapter(model, tmp_path) / "adapter_model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if "classifier" not in name}
    save_file(tensors, file, metadata={"format": "pt"})
    before = state(model)
    with pytest.raises(ailora.InputError, match=r"has no classifier\.weight.*incomplete"):
        ailora.resume(model, tmp_path, adapter_name="b")
    assert state(model).keys() == before.keys()
    assert list(model.peft_config) == ["default"]
    assert model.active_adapters == ["default"]


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("dora", True, "use_dora is False in .* but dora is True"),
        ("modules_to_save", ["pooler"], "lists 'pooler' in modules_to_save"),
    ],
)
def test_options_that_the_configuration_contradicts(key: str, value: object, match: str, tmp_path: Path) -> None:
    ailora.save_adapter(ailora.adapt(BERT.model(), rank=4, form="stock"), tmp_path)
    sidecar = json.loads((tmp_path / "ailora.json").read_text())
    assert key in sidecar["plan"]
    sidecar["plan"][key] = value
    (tmp_path / "ailora.json").write_text(json.dumps(sidecar))
    model = BERT.model()
    with pytest.raises(ailora.InputError, match=match):
        ailora.resume(model, tmp_path)
    assert "lora" not in str(model)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_a_tensor_without_a_place_leaves_an_adapted_model_alone(tmp_path: Path) -> None:
    """The adapter has embeddings of a resized vocabulary, which another adapter has moved below a wrapper."""

    def resized() -> nn.Module:
        model = LLAMA.model()
        model.resize_token_embeddings(70, mean_resizing=False)
        return model

    adapted = ailora.adapt(resized(), rank=2)
    sidecar = ailora.save_adapter(adapted, tmp_path / "own") / "ailora.json"
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    shutil.copy(sidecar, tmp_path / "adapter")
    model = ailora.adapt(resized(), rank=2, adapter_name="first", modules_to_save=["embed_tokens"])
    before, output = state(model), LLAMA.output(model)
    with pytest.raises(ailora.ModelError, match=r"has no place for model\.embed_tokens\.weight"):
        ailora.resume(model, tmp_path / "adapter", adapter_name="second")
    assert list(model.peft_config) == ["first"]
    assert model.active_adapters == ["first"]
    assert state(model).keys() == before.keys()
    assert torch.equal(LLAMA.output(model), output)


@pytest.mark.parametrize("form", ["anchored", "stock", "residual"])
def test_a_failure_while_loading_leaves_the_base_alone(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ailora.save_adapter(ailora.adapt(LLAMA.model(), rank=2, form=form), tmp_path)
    base = LLAMA.model()
    before = state(base)

    def fail(*_: object, **options: object) -> None:
        raise OSError("stale file handle")

    monkeypatch.setattr(importlib.import_module("ailora.adapter_io.resume"), "_load_tensors", fail)
    with pytest.raises(OSError, match="stale"):
        ailora.resume(base, tmp_path)
    assert state(base).keys() == before.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_a_failure_after_loading_restores_the_tensors_of_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = ailora.adapt(LLAMA.model(), rank=2)
    sidecar = ailora.save_adapter(adapted, tmp_path / "own") / "ailora.json"
    with torch.no_grad():
        adapted.get_base_model().model.embed_tokens.weight.add_(1)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    shutil.copy(sidecar, tmp_path / "adapter")
    base = LLAMA.model()
    before = state(base)

    def load_and_fail(self: nn.Module, *args: Any, **options: Any) -> None:
        nn.Module.load_state_dict(self, *args, **options)
        assert not torch.equal(base.model.embed_tokens.weight, before["model.embed_tokens.weight"])
        raise OSError("stale file handle")

    monkeypatch.setattr(PeftModel, "load_state_dict", load_and_fail)
    with pytest.raises(OSError, match="stale"):
        ailora.resume(base, tmp_path / "adapter")
    assert state(base).keys() == before.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())


def test_labels_of_a_checkpoint_in_the_residual_form_are_kept(tmp_path: Path) -> None:
    model = BERT.model()
    names = {index: f"class {index}" for index in range(model.config.num_labels)}
    model.config.id2label = names
    adapted = ailora.adapt(model, rank=2, form="residual")
    adapted.save_pretrained(tmp_path)
    (tmp_path / "ailora.json").write_text(_sidecar(adapted))
    resumed = ailora.resume(BERT.model(), tmp_path)
    assert json.loads(_sidecar(resumed))["labels"] == list(names.values())
