"""`merge`: out of core, byte for byte where nothing changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import ailora
from ailora.checkpoints import export, init, merge
from ailora.safetensors_io import Checkpoint
from tests.checkpoints.conftest import LLAMA, loaded, on_residual_weights, trained
from tests.contracts.test_adapted_model import close
from tests.families import FAMILIES, train
from tests.tiny_models import tiny_inputs, tiny_model


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = Checkpoint.open(folder)
    return {name: found.read(name) for name in found.tensors}


def merged_by_peft(base: nn.Module, adapter: Path) -> nn.Module:
    return PeftModel.from_pretrained(base, adapter).merge_and_unload()


def test_it_is_what_peft_merges_in_memory(base: Path, adapter: Path, tmp_path: Path) -> None:
    report = merge(str(base), adapter, tmp_path / "out")
    assert report.merged == 4
    expected = merged_by_peft(loaded(base), adapter).state_dict()
    for name, tensor in weights(tmp_path / "out").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
        close(model(**LLAMA.inputs()).logits, merged_by_peft(loaded(base), adapter)(**LLAMA.inputs()).logits)


def test_the_rest_is_copied_byte_for_byte(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge(str(base), adapter, tmp_path / "out")
    before, after = Checkpoint.open(base), Checkpoint.open(tmp_path / "out")
    index = "model.safetensors.index.json"
    assert (base / index).read_bytes() == (tmp_path / "out" / index).read_bytes()
    assert before.headers.keys() == after.headers.keys()
    for name, stored in before.tensors.items():
        now = after.tensors[name]
        assert (now.file.name, now.start, now.stop, now.dtype) == (
            stored.file.name,
            stored.start,
            stored.stop,
            stored.dtype,
        )
        same = torch.equal(before.read(name), after.read(name))
        assert same != any(leaf in name for leaf in ("q_proj", "v_proj"))
    for name in ("config.json", "generation_config.json"):
        assert json.loads((base / name).read_text()) == json.loads((tmp_path / "out" / name).read_text())


@pytest.mark.parametrize(("dtype", "stored"), [("bf16", torch.bfloat16), ("fp16", torch.float16), (None, None)])
def test_any_dtype(dtype: str | None, stored: torch.dtype | None, adapter: Path, tmp_path: Path) -> None:
    """Sums in float32, rounded once: the result is the exact one, rounded, in all but ties of the rounding."""
    LLAMA.model().to(torch.bfloat16).save_pretrained(tmp_path / "base")
    init(str(tmp_path / "base"), tmp_path / "adapter", rank=4)
    model = ailora.resume(loaded(tmp_path / "base"), tmp_path / "adapter")
    train(model, LLAMA, steps=3)
    ailora.save_adapter(model, tmp_path / "trained")
    merge(str(tmp_path / "base"), tmp_path / "trained", tmp_path / "out", dtype=dtype)
    exact = merged_by_peft(loaded(tmp_path / "base"), tmp_path / "trained").state_dict()
    for name, tensor in weights(tmp_path / "out").items():
        assert tensor.dtype is (stored or torch.bfloat16)
        eps = torch.finfo(tensor.dtype).eps
        torch.testing.assert_close(tensor.float(), exact[name].float(), rtol=eps, atol=1e-7)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype is (stored or torch.bfloat16)


@pytest.mark.parametrize("options", [{"rslora": True, "alpha": 3}, {"rank": {"query": 4, "value": 2}}, {"dora": True}])
def test_every_kind_of_adapter(base: Path, options: dict[str, Any], tmp_path: Path) -> None:
    trained(base, tmp_path / "adapter", **options)
    merge(str(base), tmp_path / "adapter", tmp_path / "out")
    with torch.no_grad():
        expected = PeftModel.from_pretrained(loaded(base), tmp_path / "adapter")(**LLAMA.inputs()).logits
        close(loaded(tmp_path / "out")(**LLAMA.inputs()).logits, expected)


@pytest.mark.parametrize("dora", [False, True])
def test_weights_that_are_stored_the_other_way_round(dora: bool, tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path / "base")
    adapted = ailora.adapt(model, rank=2, dora=dora)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)
    ailora.save_adapter(adapted, tmp_path / "adapter")
    merge(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "out")
    merged = type(model).from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        close(merged(**tiny_inputs("gpt2"))[0], adapted.eval()(**tiny_inputs("gpt2"))[0])


def test_adapters_of_others(base: Path, tmp_path: Path) -> None:
    """All-linear, with patterns of ranks and alphas, never near our code."""
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules="all-linear",
        rank_pattern={"q_proj": 2, r"^model.layers.1.mlp.up_proj": 3},
        alpha_pattern={"layers.0.self_attn.v_proj": 5},
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(loaded(base), config)
    model.save_pretrained(tmp_path / "adapter")
    assert merge(str(base), tmp_path / "adapter", tmp_path / "out").merged == 14
    with torch.no_grad():
        close(loaded(tmp_path / "out")(**LLAMA.inputs()).logits, model.eval()(**LLAMA.inputs()).logits)


def test_heads_take_the_place_of_the_base_models(tmp_path: Path) -> None:
    """From a bare encoder to a classifier with labels of its own."""
    family = FAMILIES["bert"]
    family.model().bert.save_pretrained(tmp_path / "bare")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bare", num_labels=5)
    adapted = ailora.adapt(model, rank=4)
    adapted(input_ids=family.inputs()["input_ids"]).logits.square().mean().backward()
    torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1).step()
    ailora.save_adapter(adapted, tmp_path / "adapter")
    report = merge(str(tmp_path / "bare"), tmp_path / "adapter", tmp_path / "out")
    assert report.saved_modules == ("classifier.bias", "classifier.weight")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert merged.config.num_labels == 5
    with torch.no_grad():
        close(merged(**family.inputs()).logits, adapted.eval()(**family.inputs()).logits)


def test_a_head_without_dimensions_is_refused(tmp_path: Path) -> None:
    family = FAMILIES["bert"]
    model = AutoModelForSequenceClassification.from_config(family.model().config)
    model.save_pretrained(tmp_path / "base")
    file = ailora.save_adapter(ailora.adapt(model, rank=4), tmp_path / "adapter") / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.classifier.bias"] = torch.tensor(0.0)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ailora.ModelError, match=r"classifier\.bias .* has the shape \(\d,\)"):
        merge(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "out")


def test_an_untrained_adapter_changes_nothing(base: Path, tmp_path: Path) -> None:
    init(str(base), tmp_path / "adapter", rank=4)
    merge(str(base), tmp_path / "adapter", tmp_path / "out")
    before, after = weights(base), weights(tmp_path / "out")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_in_double_precision_are_not_rounded_to_single(tmp_path: Path) -> None:
    model = LLAMA.model().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter), alpha=1e-10)
    model.save_pretrained(tmp_path / "base")
    init(str(tmp_path / "base"), tmp_path / "adapter", rank=4)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor.float() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    report = merge(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "out")
    before, after = weights(tmp_path / "base"), weights(Path(report.folder))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_infinite_numbers_of_a_configuration_stay_numbers(adapter: Path, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"limits": [0.0, float("inf")]}))
    merge(str(tmp_path / "base"), adapter, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["limits"] == [0.0, float("inf")]


def test_exports_merge_too(base: Path, adapter: Path, tmp_path: Path) -> None:
    export(adapter, tmp_path / "export", rank=8)
    merge(str(base), tmp_path / "export", tmp_path / "out")
    with torch.no_grad():
        expected = PeftModel.from_pretrained(loaded(base), adapter)(**LLAMA.inputs()).logits
        close(loaded(tmp_path / "out")(**LLAMA.inputs()).logits, expected)


def test_another_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = LLAMA.model()
    with torch.no_grad():
        other.model.layers[1].self_attn.q_proj.weight[3, 3] += 0.1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ailora.ModelError, match=r"layers\.1\.self_attn\.q_proj: the weight differs from"):
        merge(str(tmp_path / "other"), adapter, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))
    FAMILIES["bert"].model().save_pretrained(tmp_path / "bert")
    with pytest.raises(ailora.AiloraError, match=r"BertConfig|no tensor of the checkpoint|has no|does not have"):
        merge(str(tmp_path / "bert"), adapter, tmp_path / "none")


@pytest.mark.parametrize("policy", ["ailora", {"query": "lora", "value": "minor"}], ids=["all", "value"])
def test_an_adapter_on_residual_weights_is_merged_into_them(policy: Any, base: Path, tmp_path: Path) -> None:
    model = on_residual_weights(base, tmp_path / "adapter", policy=policy)
    with torch.no_grad():
        expected = model(**LLAMA.inputs()).logits
    with pytest.raises(ailora.InputError, match="needs residual weights"):
        merge(str(base), tmp_path / "adapter", tmp_path / "wrong")
    # Our subclass refuses to leave residual weights without their adapter.
    LoraModel.unload(model.base_model).save_pretrained(tmp_path / "residual")
    merge(str(tmp_path / "residual"), tmp_path / "adapter", tmp_path / "out")
    with torch.no_grad():
        close(loaded(tmp_path / "out")(**LLAMA.inputs()).logits, expected)


def test_sums_that_overflow_are_refused(base: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(loaded(base), config)
    with torch.no_grad():
        model.get_base_model().model.layers[0].self_attn.q_proj.lora_B["default"].weight.fill_(1e6)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ailora.ModelError, match=r"q_proj\.weight .* is not finite when written in torch\.float16"):
        merge(str(base), tmp_path / "adapter", tmp_path / "out", dtype="fp16")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (peft.LoraConfig(r=2, target_modules=["embed_tokens"], task_type="CAUSAL_LM"), "is not the factor of a linear"),
        (peft.LoraConfig(r=2, target_modules=["q_proj"], bias="lora_only", task_type="CAUSAL_LM"), "trained biases"),
        (
            peft.LoHaConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
            "expected an adapter of the type 'LORA', got 'LOHA'",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
def test_adapters_of_other_kinds_are_refused(base: Path, config: Any, message: str, tmp_path: Path) -> None:
    get_peft_model(loaded(base), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ailora.InputError, match=message):
        merge(str(base), tmp_path / "adapter", tmp_path / "out")


def test_shards_are_written_again_in_another_dtype(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge(str(base), adapter, tmp_path / "out", dtype="bf16")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * 2 for t in weights(tmp_path / "out").values())
    assert load_file(tmp_path / "out" / next(iter(index["weight_map"].values())))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changes the base weights"),
        ({"init_lora_weights": "olora"}, "init_lora_weights 'olora' changes the base weights"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens is set"),
    ],
)
def test_lora_that_is_more_than_its_product_is_refused(
    base: Path, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **options)
    get_peft_model(loaded(base), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ailora.InputError, match=message):
        merge(str(base), tmp_path / "adapter", tmp_path / "out")
    with pytest.raises(ailora.InputError, match=message):
        export(tmp_path / "adapter", tmp_path / "out")


def test_every_config_that_peft_writes_is_plain(base: Path, adapter: Path, tmp_path: Path) -> None:
    """The options that are let pass are those of the installed PEFT; a new one would be refused."""
    for options in ({}, {"use_rslora": True}, {"use_dora": True}, {"init_lora_weights": "gaussian"}):
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **options)
        get_peft_model(loaded(base), config).save_pretrained(tmp_path / str(options))
        assert merge(str(base), tmp_path / str(options), tmp_path / f"{options}-out").merged == 2


def test_what_overflows_without_the_adapter_is_refused_too(adapter: Path, tmp_path: Path) -> None:
    model = LLAMA.model()
    with torch.no_grad():
        model.model.norm.weight[0] = 1e5
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(ailora.ModelError, match=r"model\.norm\.weight .* is not finite when written in torch\.float16"):
        merge(str(tmp_path / "base"), adapter, tmp_path / "out", dtype="fp16")
    merge(str(tmp_path / "base"), adapter, tmp_path / "out", dtype="bf16")


def test_a_head_with_two_layers_keeps_its_labels(tmp_path: Path) -> None:
    import transformers as tf

    config = tf.DistilBertConfig(dim=32, hidden_dim=48, n_layers=1, n_heads=4, vocab_size=64, num_labels=3)
    model = tf.DistilBertForSequenceClassification(config)
    tf.DistilBertModel(config).save_pretrained(tmp_path / "bare")
    model.distilbert.save_pretrained(tmp_path / "bare")
    adapted = ailora.adapt(model, rank=2)
    ailora.save_adapter(adapted, tmp_path / "adapter")
    config_file = tmp_path / "bare" / "config.json"
    kept = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({k: v for k, v in kept.items() if k not in ("id2label", "label2id")}))
    merge(str(tmp_path / "bare"), tmp_path / "adapter", tmp_path / "out")
    merged = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert merged.config.num_labels == 3
    inputs = {"input_ids": torch.arange(5, 12)[None]}
    with torch.no_grad():
        close(merged(**inputs).logits, adapted.eval()(**inputs).logits)


def test_the_modules_of_sentence_transformers_travel(base: Path, adapter: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(base, tmp_path / "base"))
    paths = ["", "1_Pooling", "2_Dense", "3_Normalize", "../outside", "0_Transformer", 7, []]
    (source / "modules.json").write_text(json.dumps([{"idx": i, "path": path} for i, path in enumerate(paths)]))
    kept = ("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors")
    left = (
        "0_Transformer/model.safetensors",
        "../outside/config.json",
        "4_Other/config.json",
        "1_Pooling/deep/file",
        "2_Dense/x.py",
    )
    for name in (*kept, *left, "0_Transformer/config.json"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text('{"model_type": "llama"}' if name == "0_Transformer/config.json" else "{}")
    merge(str(source), adapter, tmp_path / "x" / "out")
    for name in (*kept, "modules.json"):
        assert (tmp_path / "x" / "out" / name).read_bytes() == (source / name).read_bytes(), name
    for name in left:
        assert not (tmp_path / "x" / "out" / name).exists(), name


def test_a_merged_embedder_pools_as_its_base(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    init("builtin:minilm", tmp_path / "start", "lora", rank=2)
    merge("builtin:minilm", tmp_path / "start", tmp_path / "out")
    assert len(SentenceTransformer(str(tmp_path / "out"), device="cpu")) == 3


def test_a_refusal_below_a_path_that_is_not_utf8_keeps_its_reason(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "d\udcff"
    folder.mkdir()
    trained(base, folder / "adapter")
    other = Path(shutil.copytree(base, tmp_path / "other"))
    for file in other.glob("*.safetensors"):
        save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(ailora.ModelError, match="the weight differs") as refused:
        merge(str(other), folder / "adapter", tmp_path / "out")
    reason = str(refused.value).encode(errors="backslashreplace").decode()
    assert (tmp_path / "out" / ".ailora" / "failed.txt").read_text() == f"{reason}\n"
    merge(str(base), folder / "adapter", tmp_path / "out")


def test_files_of_tokenizers_travel_and_others_do_not(base: Path, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    kept = ("source.spm", "bpe.codes", "tokenizer.model.v3", "vocab.txt", "chat_templates/tool.jinja", "LICENSE")
    left = (
        "pytorch_model.bin",
        "modeling_x.py",
        "optimizer.pt",
        "training_args.bin",
        "README.md",
        "adapter_config.json",
    )
    (tmp_path / "base" / "chat_templates").mkdir()
    for name in (*kept, *left):
        (tmp_path / "base" / name).write_text(name)
    merge(str(tmp_path / "base"), adapter, tmp_path / "out")
    assert all((tmp_path / "out" / name).read_text() == name for name in kept)
    assert not any((tmp_path / "out" / name).exists() for name in left)


@pytest.mark.parametrize("vocabulary", [None, 40], ids=["same vocabulary", "resized"])
def test_a_resized_vocabulary_brings_its_tokenizer(vocabulary: int | None, base: Path, tmp_path: Path) -> None:
    """A file of the base's tokenizer that the other tokenizer lacks would be read too."""
    shutil.copytree(base, tmp_path / "base")
    tokenizers = {
        tmp_path / "base": ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "chat_template.jinja"),
        tmp_path / "adapter": ("tokenizer_config.json", "tokenizer.json", "chat_templates/tool.jinja"),
    }
    model = loaded(base)
    if vocabulary is not None:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    ailora.adapt(model, rank=4).save_pretrained(tmp_path / "adapter", save_embedding_layers=vocabulary is not None)
    for folder, names in tokenizers.items():
        (folder / "chat_templates").mkdir()
        for name in names:
            (folder / name).write_text(folder.name)
    merge(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "out")
    source = tmp_path / ("base" if vocabulary is None else "adapter")
    for name in {name for names in tokenizers.values() for name in names}:
        copied = tmp_path / "out" / name
        assert copied.is_file() == (name in tokenizers[source]), name
        assert not copied.is_file() or copied.read_text() == source.name
    assert (tmp_path / "out" / "generation_config.json").is_file()


def test_without_a_tokenizer_of_the_adapter_that_of_the_base_is_copied(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text("base")
    model = loaded(base)
    model.resize_token_embeddings(40, mean_resizing=False)
    ailora.adapt(model, rank=4).save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    (tmp_path / "adapter" / "chat_template.jinja").write_text("adapter")
    merge(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "base"
    assert not (tmp_path / "out" / "chat_template.jinja").exists()


def test_a_failed_merge_does_not_keep_the_folder(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = LLAMA.model()
    with torch.no_grad():
        other.model.layers[1].self_attn.q_proj.weight.normal_()
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ailora.ModelError, match="the weight differs from"):
        merge(str(tmp_path / "other"), adapter, tmp_path / "out")
    merge(str(base), adapter, tmp_path / "out")
    assert weights(tmp_path / "out").keys() == weights(base).keys()


def test_a_disk_that_fails_in_the_background_is_heard(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system says so once, to whoever asks first."""
    import os
    import threading

    from ailora.checkpoints import checkpoint_writer

    real, main = os.fsync, threading.main_thread()

    def fsync(descriptor: int) -> None:
        if threading.current_thread() is not main:
            raise OSError(5, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(checkpoint_writer, "_SYNC_BYTES", 1)
    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(ailora.InputError, match="Input/output error"):
        merge(str(base), adapter, tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_one_of_two_tied_weights_cannot_be_merged(base: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"], task_type="CAUSAL_LM")
    get_peft_model(loaded(base), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ailora.ModelError, match="share one weight, but the adapter trained only one of them"):
        merge(str(base), tmp_path / "adapter", tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
def test_an_adapted_head_that_is_not_tied(tmp_path: Path) -> None:
    """PEFT saves the frozen weight below the adapter along."""
    model = LLAMA.model()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(loaded(tmp_path / "base"), config)
    adapted.save_pretrained(tmp_path / "adapter")
    assert merge(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "out").merged == 3
    with torch.no_grad():
        close(loaded(tmp_path / "out")(**LLAMA.inputs()).logits, adapted.eval()(**LLAMA.inputs()).logits)


def test_the_same_folder_for_another_base_is_another_request(base: Path, adapter: Path, tmp_path: Path) -> None:
    import shutil

    (tmp_path / "adapter").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, tmp_path / "adapter")
    shutil.copytree(base, tmp_path / "copy")  # sizes and times are the same
    merge(str(base), tmp_path / "adapter", tmp_path / "out")
    with pytest.raises(ailora.InputError, match="finished result of a command with different inputs or options"):
        merge(str(tmp_path / "copy"), tmp_path / "adapter", tmp_path / "out")


def perturbed(model: nn.Module) -> nn.Module:
    """The model with every trained parameter moved."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 10)
    return model.eval()


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
@pytest.mark.parametrize("vocabulary", [None, 40], ids=["same vocabulary", "resized"])
def test_tied_weights_that_were_trained_apart_are_no_longer_tied(
    vocabulary: int | None, base: Path, tmp_path: Path
) -> None:
    model = loaded(base)
    if vocabulary is not None:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    adapted = perturbed(ailora.adapt(model, rank=4, modules_to_save=["embed_tokens", "lm_head"]))
    ailora.save_adapter(adapted, tmp_path / "adapter")
    merge(str(base), tmp_path / "adapter", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    # Older transformers ties by this key alone, whatever the file holds.
    assert config["tie_word_embeddings"] is False
    assert config["vocab_size"] == (vocabulary or loaded(base).config.vocab_size)
    merged = weights(tmp_path / "out")
    assert not torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])
    inputs = {"input_ids": torch.arange(config["vocab_size"])[None]}
    with torch.no_grad():
        close(loaded(tmp_path / "out")(**inputs).logits, adapted(**inputs).logits)
    again = loaded(base)
    if vocabulary is not None:
        again.resize_token_embeddings(vocabulary, mean_resizing=False)
    with torch.no_grad():
        close(ailora.resume(again, tmp_path / "adapter").eval()(**inputs).logits, adapted(**inputs).logits)


def test_tied_weights_that_are_saved_twice_stay_tied(base: Path, tmp_path: Path) -> None:
    """PEFT saves both embeddings of a model whose vocabulary was resized."""
    model = loaded(base)
    model.resize_token_embeddings(40, mean_resizing=False)
    adapted = perturbed(ailora.adapt(model, rank=4))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    merge(str(base), tmp_path / "adapter", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["tie_word_embeddings"], config["vocab_size"]) == (True, 40)
    assert "lm_head.weight" not in weights(tmp_path / "out")
    inputs = {"input_ids": torch.arange(40)[None]}
    with torch.no_grad():
        close(loaded(tmp_path / "out")(**inputs).logits, adapted(**inputs).logits)


def test_one_embedding_of_a_resized_vocabulary_is_not_enough(tmp_path: Path) -> None:
    model = LLAMA.model()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(tmp_path / "base")
    model = loaded(tmp_path / "base")
    model.resize_token_embeddings(40, mean_resizing=False)
    ailora.adapt(model, rank=4).save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "lm_head" not in name}, file)
    with pytest.raises(ailora.ModelError, match=r"resized to 40 rows, but lm_head\.weight was not saved"):
        merge(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "out")


def test_a_stock_file_that_lacks_a_targeted_layer_is_refused(base: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=r".*\.(q_proj|v_proj)", task_type="CAUSAL_LM")
    get_peft_model(loaded(base), config).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "layers.1.self_attn.v" not in name}, file)
    with pytest.raises(
        ailora.InputError, match=r"no factors for 1 module .* such as model\.layers\.1\.self_attn\.v_proj"
    ):
        merge(str(base), tmp_path / "adapter", tmp_path / "out")
    with pytest.raises(ailora.InputError, match="the file is incomplete"):
        export(tmp_path / "adapter", tmp_path / "out")


@pytest.mark.parametrize("base_padding", [None, 0])
def test_labels_and_padding_of_a_classifier_go_into_the_merged_model(tmp_path: Path, base_padding: int | None) -> None:
    """A classifier reads the last token other than padding, so the base's own padding token would change its scores."""
    from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaModel

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    LlamaModel(LlamaConfig(**sizes, vocab_size=64, pad_token_id=base_padding)).save_pretrained(tmp_path / "base")
    names = {0: "dislike", 1: "like", 2: "neither"}
    model = LlamaForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=3, id2label=names, label2id={name: i for i, name in names.items()}
    )
    model.config.pad_token_id = 2
    ailora.save_adapter(ailora.adapt(model, rank=2), tmp_path / "adapter")
    merge(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "out")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert merged.config.id2label == names
    assert merged.config.pad_token_id == 2
    assert merged(input_ids=torch.tensor([[5, 6, 7], [5, 2, 2]])).logits.shape == (2, 3)


def test_a_model_that_counts_positions_from_its_padding_keeps_it(tmp_path: Path) -> None:
    """RoBERTa's embeddings are built with the padding token of the base, whatever the configuration says later."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = RobertaConfig(**sizes, vocab_size=64, max_position_embeddings=20, pad_token_id=1)
    RobertaForSequenceClassification(config).save_pretrained(tmp_path / "base")
    model = RobertaForSequenceClassification.from_pretrained(tmp_path / "base").eval()
    model.config.pad_token_id = 2
    ailora.save_adapter(ailora.adapt(model, rank=2), tmp_path / "adapter")
    merge(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "out")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert merged.config.pad_token_id == 1
    inputs = {"input_ids": torch.tensor([[5, 2, 7, 1]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    assert close(merged(**inputs).logits, model(**inputs).logits)


def test_a_sum_that_is_not_finite_is_blamed_on_its_source(base: Path, adapter: Path, tmp_path: Path) -> None:
    """No other dtype would help."""
    large = Path(shutil.copytree(adapter, tmp_path / "large"))
    tensors = load_file(large / "adapter_model.safetensors")
    save_file({k: torch.full_like(v, 1e38) for k, v in tensors.items()}, large / "adapter_model.safetensors")
    (large / "ailora.json").unlink()
    with pytest.raises(ailora.ModelError, match="after adding the update: the factors of the adapter are too large"):
        merge(str(base), large, tmp_path / "out")
