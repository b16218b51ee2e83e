"""Artefacts load where users take them: stock loaders are the judges."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, PeftModel
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import ailora
from ailora.checkpoints import export, init
from ailora.model_path import resolve_model
from tests.checkpoints.conftest import LLAMA, loaded, trained
from tests.contracts.test_adapted_model import close

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def exported(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two exports for one base: of rank 8, and of rank 3 from another policy."""
    folder = tmp_path_factory.mktemp("exported")
    export(adapter, folder / "one")
    trained(base, folder / "other", policy="reversed", alpha=2)
    export(folder / "other", folder / "two", rank=3)
    return {name: folder / name for name in ("one", "two")}


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**LLAMA.inputs()).logits


def stock(base: Path, adapter: Path) -> Tensor:
    return output(PeftModel.from_pretrained(loaded(base), adapter))


def test_auto_peft_model_finds_the_base(base: Path, adapter: Path, exported: dict[str, Path], tmp_path: Path) -> None:
    init(str(base), tmp_path, rank=4)
    assert torch.equal(output(AutoPeftModelForCausalLM.from_pretrained(tmp_path)), output(loaded(base)))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)


def test_transformers_loads_it_itself(base: Path, exported: dict[str, Path], tmp_path: Path) -> None:
    init(str(base), tmp_path, rank=4)
    for folder in (tmp_path, *exported.values()):
        model = loaded(base)
        model.load_adapter(str(folder))
        assert torch.equal(output(model), stock(base, folder))


def test_sentence_transformers_loads_it(tmp_path: Path) -> None:
    path = resolve_model("builtin:minilm")
    model = ailora.adapt(AutoModel.from_pretrained(path), rank=4)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.normal_(std=0.02)
    ailora.save_adapter(model, tmp_path)
    texts = ["a red cup", "the boat in the harbour is green"]
    embedder = SentenceTransformer(str(path), device="cpu")
    before = embedder.encode(texts, convert_to_tensor=True)
    embedder.load_adapter(str(tmp_path))
    embeddings = embedder.encode(texts, convert_to_tensor=True)
    assert not close(embeddings, before, 1e-3)
    inputs = AutoTokenizer.from_pretrained(path)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model.eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    expected = nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    assert close(embeddings, expected)


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_two_adapters_on_one_base_in_any_order(order: tuple[str, str], base: Path, exported: dict[str, Path]) -> None:
    model = PeftModel.from_pretrained(loaded(base), exported[order[0]], adapter_name=order[0])
    model.load_adapter(str(exported[order[1]]), adapter_name=order[1])
    for name in ("one", "two", "one"):
        model.set_adapter(name)
        assert torch.equal(output(model), stock(base, exported[name]))
    with model.disable_adapter():
        assert torch.equal(output(model), output(loaded(base)))


def test_weighted_sums(base: Path, exported: dict[str, Path]) -> None:
    model = PeftModel.from_pretrained(loaded(base), exported["one"], adapter_name="one")
    model.load_adapter(str(exported["two"]), adapter_name="two")
    model.add_weighted_adapter(["one", "two"], [0.5, 2.0], "sum", combination_type="cat")
    model.set_adapter("sum")
    merged = loaded(base)
    for name, share in (("one", 0.5), ("two", 2.0)):
        layers = PeftModel.from_pretrained(loaded(base), exported[name]).get_base_model()
        for module in ("q_proj", "v_proj"):
            for i in (0, 1):
                delta = getattr(layers.model.layers[i].self_attn, module).get_delta_weight("default")
                getattr(merged.model.layers[i].self_attn, module).weight.data += share * delta
    close(output(model), output(merged))


def test_hot_swap(base: Path, exported: dict[str, Path], tmp_path: Path) -> None:
    """Into a model that was loaded with stock PEFT; equal ranks, as PEFT asks."""
    init(str(base), tmp_path, rank=4)
    model = PeftModel.from_pretrained(loaded(base), tmp_path)
    assert torch.equal(output(model), output(loaded(base)))
    hotswap_adapter(model, str(exported["one"]), adapter_name="default")
    close(output(model), stock(base, exported["one"]))


def test_merge_and_unload(base: Path, exported: dict[str, Path]) -> None:
    for folder in exported.values():
        merged = PeftModel.from_pretrained(loaded(base), folder).merge_and_unload()
        close(output(merged), stock(base, folder))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_base_in_another_dtype_starts_exact(dtype: torch.dtype, base: Path, tmp_path: Path) -> None:
    init(str(base), tmp_path, rank=4)
    expected = output(loaded(base, dtype))
    assert torch.equal(output(PeftModel.from_pretrained(loaded(base, dtype), tmp_path)), expected)


def test_stock_training_wakes_both_halves_and_its_first_step_is_ours(base: Path, tmp_path: Path) -> None:
    """Documented: `A0` and `B` have zero partners at the start, so that the first gradients are those of `dA, dB`."""
    init(str(base), tmp_path, rank=4)
    model = PeftModel.from_pretrained(loaded(base), tmp_path, is_trainable=True)
    ours = ailora.resume(loaded(base), tmp_path)
    for each in (model, ours):
        LLAMA.loss(each).backward()
    layer, live = (m.get_base_model().model.layers[1].self_attn.v_proj for m in (model, ours))
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert A.requires_grad
    close(A.grad[4:], live.lora_A["default"].delta.grad)
    close(B.grad[:, :4], live.lora_B["default"].delta.grad)
    assert not A.grad[:4].any()
    assert not B.grad[:, 4:].any()


@pytest.mark.ci
@pytest.mark.parametrize("how", ["stock", "resumed"])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_trl_goes_on_from_what_init_wrote(how: str, shared: Path, tmp_path: Path) -> None:
    """A real language model, TRL's own trainer; the loss falls and the checkpoint loads again."""
    name = str(shared / "lm" / "pico-llama")
    init(name, tmp_path / "start", rank=8)
    model = AutoModelForCausalLM.from_pretrained(name)
    if how == "stock":
        model = PeftModel.from_pretrained(model, tmp_path / "start", is_trainable=True)
    else:
        model = ailora.resume(model, tmp_path / "start")
    texts = [f"item {i} costs {i * 3} coins and weighs {i * 2} grams" for i in range(16)]
    trainer = SFTTrainer(
        model,
        args=SFTConfig(
            str(tmp_path / "run"),
            max_steps=6,
            per_device_train_batch_size=4,
            learning_rate=5e-3,
            lr_scheduler_type="constant",
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            max_length=32,
        ),
        train_dataset=Dataset.from_dict({"text": texts}),
        processing_class=AutoTokenizer.from_pretrained(name),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    checkpoint = tmp_path / "run" / "checkpoint-6"
    inputs = {"input_ids": torch.arange(12)[None]}
    again = AutoModelForCausalLM.from_pretrained(name)
    if how == "resumed":
        again = ailora.resume(again, checkpoint, metadata=tmp_path / "start")
    else:
        again = PeftModel.from_pretrained(again, checkpoint)
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs).logits, model.eval()(**inputs).logits)


# What loaders ask for that cannot run here; docs/checkpoints.md cites where they say so.


def vllm_accepts(folder: Path, max_lora_rank: int) -> list[str]:
    """vLLM: LoRA only, one rank within its limit, one scaling for all, no DoRA, no bias, no module trained whole, no
    tensor but lora_A and lora_B of the base model's modules."""
    config, state = json.loads((folder / "adapter_config.json").read_text()), load_file(folder / WEIGHTS)
    problems = [
        f"{key} is {config[key]!r}"
        for key, allowed in {
            "peft_type": ("LORA",),
            "bias": ("none",),
            "use_dora": (False,),
            "modules_to_save": (None, []),
            "rank_pattern": ({}, None),
            "alpha_pattern": ({}, None),
        }.items()
        if config[key] not in allowed
    ]
    problems += [f"r {config['r']}"] if not 0 < config["r"] <= max_lora_rank else []
    for name, tensor in state.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_(A|B)\.weight", name)
        if match is None:
            problems.append(name)
        elif tensor.shape[0 if match[2] == "A" else 1] != config["r"]:
            problems.append(f"{name} has another rank")
    return problems


def llama_cpp_accepts(folder: Path) -> list[str]:
    """llama.cpp's converter: pairs of names that end in `.lora_A.weight` and `.lora_B.weight`, a whole `lora_alpha`,
    the scaling alpha over the rank of each tensor, so that rsLoRA and patterns would be scaled wrong."""
    config, state = json.loads((folder / "adapter_config.json").read_text()), load_file(folder / WEIGHTS)
    problems = [] if isinstance(config["lora_alpha"], int) else ["lora_alpha is not whole"]
    problems += ["rslora"] if config["use_rslora"] else []
    problems += ["patterns"] if config["alpha_pattern"] or config["rank_pattern"] else []
    names = {
        end: {n.removesuffix(end) for n in state if n.endswith(end)} for end in (".lora_A.weight", ".lora_B.weight")
    }
    problems += ["pairs"] if names[".lora_A.weight"] != names[".lora_B.weight"] else []
    return problems + [name for name in state if ".lora_" not in name]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rslora": True},
        {"rank": {"query": 4, "value": 2}, "alpha": 3},
        {"policy": {"query": "minor", "key": "lora"}},
    ],
    ids=str,
)
def test_exports_keep_the_rules_of_servers(options: dict[str, Any], base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "adapter", **options)
    for number, recompressed in enumerate(({}, {"rank": 2}, {"energy": 0.9, "dtype": "bf16"})):
        report = export(tmp_path / "adapter", tmp_path / str(number), **recompressed)
        assert vllm_accepts(tmp_path / str(number), report.rank) == []
        assert llama_cpp_accepts(tmp_path / str(number)) == []


def test_the_rules_find_what_breaks_them(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "adapter", rslora=True, rank={"query": 4, "value": 2})
    assert any("rank_pattern" in problem for problem in vllm_accepts(tmp_path / "adapter", 8))
    assert {"rslora", "patterns"} <= set(llama_cpp_accepts(tmp_path / "adapter"))
    assert vllm_accepts(tmp_path / "adapter", 2)


def test_what_init_wrote_keeps_them_too(base: Path, tmp_path: Path) -> None:
    init(str(base), tmp_path, rank=4)
    assert vllm_accepts(tmp_path, 8) == []
    assert llama_cpp_accepts(tmp_path) == []


def test_loading_twice_leaves_the_base_alone(base: Path, exported: dict[str, Path]) -> None:
    model = loaded(base)
    before = copy.deepcopy(model.state_dict())
    PeftModel.from_pretrained(model, exported["one"]).unload()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
