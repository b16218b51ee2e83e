"""Models and adapters of strangers: no pickle is opened, no module imported, no pattern searched without a limit."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from ailora import InputError, ModelError, adapt
from ailora.adapter_io.peft_adapter import load_peft_adapter
from ailora.analysis import analyze
from ailora.checkpoints import init, inspect, merge
from ailora.recipes.config.loader import load_config
from ailora.recipes.inference.text_generator import TextGenerator
from ailora.recipes.registry import make_recipe, run
from ailora.recipes.task_models import load_tokenizer
from ailora.recipes.training.trainer_checkpoints import mark_complete
from ailora.weights.weight_source import open_checkpoint_source


class Bomb:
    """What a pickle can do."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


@pytest.fixture
def exploded(tmp_path: Path) -> Path:
    """The file that an opened pickle makes."""
    return tmp_path / "exploded"


def pickled(folder: Path, exploded: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": Bomb(exploded)}, folder / "pytorch_model.bin")


def beside_other_tensors(folder: Path, exploded: Path) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    torch.save({"a": Bomb(exploded)}, folder / "pytorch_model.bin")


def named_by_the_index(folder: Path, exploded: Path) -> None:
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({"a": Bomb(exploded)}, folder / "shard.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "shard.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def named_by_the_configuration(folder: Path, exploded: Path) -> None:
    torch.save({"a": Bomb(exploded)}, folder / "adapter_model.bin")
    config = json.loads((folder / "config.json").read_text()) | {"transformers_weights": "adapter_model.bin"}
    (folder / "config.json").write_text(json.dumps(config))


def in_an_adapter_beside_the_model(folder: Path, exploded: Path) -> None:
    torch.save({"a": Bomb(exploded)}, folder / "adapter_model.bin")
    adapter = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": str(folder)}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))


@pytest.mark.parametrize(
    "hide",
    [pickled, beside_other_tensors, named_by_the_index, named_by_the_configuration, in_an_adapter_beside_the_model],
)
def test_a_model_with_a_pickle_is_not_trained(
    hide: Callable[[Path, Path], None], language_config: dict[str, Any], exploded: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(language_config["model"], tmp_path / "model")
    hide(folder, exploded)
    with pytest.raises(InputError):
        run(load_config({**language_config, "model": str(folder)}))
    with pytest.raises(InputError):
        make_recipe(load_config({**language_config, "model": str(folder)})).load_model(str(folder))
    assert not exploded.exists()
    assert not Path(language_config["output"]).exists()


def test_every_reader_of_a_pickled_model_prints_the_command_that_converts_it(
    tiny_llama: str, exploded: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    adapt(model, rank=2).save_pretrained(tmp_path / "adapter")
    pickled(folder, exploded)
    readers: dict[str, Callable[[], object]] = {
        "tokenizer": lambda: load_tokenizer(str(folder)),
        "generate": lambda: TextGenerator.load(tmp_path / "adapter", base=str(folder)),
        "init": lambda: init(str(folder), tmp_path / "out"),
        "merge": lambda: merge(str(folder), tmp_path / "adapter", tmp_path / "out"),
        "inspect": lambda: inspect(str(folder)),
        "analyze": lambda: analyze(str(folder), [str(tmp_path / "adapter")]),
        "weights_from": lambda: open_checkpoint_source(model, folder, {}),
    }
    for read in readers.values():
        with pytest.raises(
            InputError, match=r"never opened\. If you trust the checkpoint, convert it once: python -c .*CONVERTED"
        ):
            read()
    assert not exploded.exists()


@pytest.mark.parametrize("where", ["alone", "beside a shard"])
def test_a_pickled_adapter_is_not_opened(where: str, tiny_llama: str, exploded: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    folder = tmp_path / "adapter"
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    weights.rename(folder / "adapter_model-1.safetensors") if where == "beside a shard" else weights.unlink()
    torch.save({"a": Bomb(exploded)}, folder / "adapter_model.bin")
    for read in (
        lambda: TextGenerator.load(folder, base=tiny_llama),
        lambda: merge(tiny_llama, folder, tmp_path / "out"),
        lambda: inspect(str(folder)),
    ):
        with pytest.raises(InputError, match="pickled adapters are never opened"):
            read()
    assert not exploded.exists()


def test_a_gguf_model_is_refused_with_the_command_that_converts_it(
    language_config: dict[str, Any], tmp_path: Path
) -> None:
    """Such a folder often has no tokenizer either, whose absence is not what is wrong."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"GGUF is not supported.*gguf_file.*CONVERTED"):
        run(load_config({**language_config, "model": str(folder)}))
    for name in (folder, folder / "model-q4.gguf"):
        with pytest.raises(InputError, match="GGUF is not supported"):
            init(str(name), tmp_path / "out")


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": r"(.|..)*\d\d\d"},
        {"exclude_modules": r"(.|..)*\d\d\d"},
        {"rank_pattern": {r"(.|..)*\d\d\d": 2}},
        {"modules_to_save": [r"(.|..)*\d\d\d"]},
        {"layers_to_transform": [0], "layers_pattern": r"(.|..)*\d\d\d"},
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
        {"target_modules": 5},
        {"rank_pattern": [1]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_configuration_of_a_stranger_reaches_peft_only_where_it_is_harmless(
    changes: dict[str, Any], tiny_llama: str, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    started = time.monotonic()
    with pytest.raises(InputError, match=r"adapter_config\.json: .*(" + "|".join(changes) + ")"):
        load_peft_adapter(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path)
    assert time.monotonic() - started < 30


def test_ordinary_patterns_give_what_peft_gives(tiny_llama: str, tmp_path: Path) -> None:
    config = LoraConfig(
        r=2,
        target_modules=r".*\.(q_proj|v_proj)",
        exclude_modules=r".*layers\.1\..*v_proj",
        rank_pattern={r".*q_(proj)": 3},
        alpha_pattern={r"layers\.\d+\.self_attn\.v_proj": 5},
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    expected = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config).eval()
    expected.save_pretrained(tmp_path)
    loaded = load_peft_adapter(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path).eval()
    inputs = {"input_ids": torch.arange(3, 12)[None]}
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, expected(**inputs).logits)


_NESTED = '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", _NESTED),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"tokenizer_class": 3}'),
        ("tokenizer_config.json", '{"model_max_length": "long"}'),
        ("tokenizer.json", _NESTED),
        ("tokenizer.json", "{}"),
        ("special_tokens_map.json", _NESTED),
    ],
)
def test_a_damaged_tokenizer_is_refused(name: str, content: str, tiny_llama: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=rf"cannot load the tokenizer of model '{folder}': \w+"):
        load_tokenizer(str(folder))


class PanicException(BaseException):
    """The class of that name in pyo3 is no Exception either."""


@pytest.mark.parametrize(("error", "expected"), [(PanicException, InputError), (KeyboardInterrupt, KeyboardInterrupt)])
def test_a_panic_of_a_tokenizer_is_an_error_of_its_file(
    error: type[BaseException], expected: type[BaseException], tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("index out of range")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(expected):
        load_tokenizer(tiny_llama)


class Stop(TrainerCallback):
    """Interrupts a run at a step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 7:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt", "pytorch_model.bin"])
def test_what_resume_reads_of_a_run_that_was_handed_on_runs_nothing(
    name: str, config: dict[str, Any], exploded: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(load_config(config), [Stop()])
    checkpoint = Path(config["output"]) / "checkpoints" / "checkpoint-5"
    torch.save({"a": Bomb(exploded)}, checkpoint / name)
    (checkpoint / "complete.json").unlink()
    mark_complete(checkpoint, 1.0)
    with pytest.raises(InputError, match=rf"{checkpoint}.* loaded"):
        run(load_config(config))
    assert not exploded.exists()


@pytest.mark.parametrize("changes", [{"trainable_token_indices": 2.5}, {"r": "8"}, {"peft_type": "NEW"}])
def test_what_peft_cannot_load_is_one_sentence(changes: dict[str, Any], tiny_llama: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ModelError, match="PEFT cannot load"):
        load_peft_adapter(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path)
