"""Adapters and sidecars that lie: every reader refuses them in our words, and writes nothing outside its folder."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import ailora
from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint
from ailora.adapter_io.peft_adapter import load_peft_adapter
from ailora.checkpoints import export, init, inspect, merge, verify
from ailora.model_loading import load_on_meta, validate_weights
from ailora.plan import AdapterMetadata
from tests.checkpoints.conftest import loaded
from tests.families import FAMILIES
from tests.safetensors_io.test_checkpoint import json_values
from tests.safetensors_io.test_header import FUZZ

WEIGHTS, CONFIG, SIDECAR = "adapter_model.safetensors", "adapter_config.json", "ailora.json"


@pytest.fixture
def copied(adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapter, tmp_path / "adapter"))


def rewritten(folder: Path, name: str, **changes: Any) -> None:
    data = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**data, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "expected an adapter of the type 'LORA', got 'LOHA'"),
        ({"r": 4}, "has rank 8, but adapter_config.json says 4"),
        ({"r": 0}, "r and lora_alpha must be positive numbers, got"),
        ({"r": "8"}, "r and lora_alpha must be positive numbers, got"),
        ({"lora_alpha": float("inf")}, "Infinity is not JSON"),
        ({"rank_pattern": {"q_proj": 3}}, "has rank 8, but adapter_config.json says 3"),
        ({"rank_pattern": [1]}, "rank_pattern must map names to positive numbers"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern must map names to positive numbers"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern: .* is not a regular expression"),
        ({"alpha_pattern": {r"(.|..)*\d\d": 1}}, "alpha_pattern: .* exceeds the time limit of 1 s"),
        ({"bias": "all"}, "trained biases"),
        ({"use_dora": True}, "use_dora is True in adapter_config.json, but .* has no magnitudes"),
        ({"lora_alpha": 1e-300}, "r and lora_alpha must be positive numbers, got"),
        ({"task_type": 3}, "task_type must be a string, got 3"),
        ({"task_type": "JUNK"}, r"adapter_config\.json: unknown task type 'JUNK'"),
        ({"r": 8.0}, "the rank 'r' must be a whole number, got 8.0"),
        ({"r": 8.0, "rank_pattern": {"r": 8}}, "the rank 'r' must be a whole number, got 8.0"),
        ({"rank_pattern": {"q_proj": 8.0}}, "the rank 'q_proj' must be a whole number, got 8.0"),
        ({"peft_version": [1]}, "peft_version must be a string"),
        ({"lora_dropout": "x"}, "lora_dropout must be between 0 and 1, got"),
        ({"lora_dropout": 2.5}, "lora_dropout must be between 0 and 1, got"),
    ],
)
def test_configurations_that_lie(changes: dict[str, Any], message: str, copied: Path) -> None:
    rewritten(copied, CONFIG, **changes)
    with pytest.raises(ailora.InputError, match=message):
        AdapterCheckpoint.open(copied)


@pytest.mark.parametrize("changes", [{"layers_to_transform": [0]}, {"exclude_modules": ["v_proj"]}])
def test_factors_of_modules_that_the_configuration_leaves_out(
    changes: dict[str, Any], base: Path, copied: Path, tmp_path: Path
) -> None:
    """PEFT leaves them out with a warning: what is merged would differ from what is served."""
    rewritten(copied, CONFIG, **changes)
    with pytest.raises(ailora.InputError, match=r"has factors for 2 modules that .* does not adapt"):
        merge(str(base), copied, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, r"has no .*k_proj.lora_.*: the file is incomplete"),
        ({"target_modules": ["q_proj"]}, r"has .*v_proj.lora_.*, which .* does not adapt"),
    ],
)
def test_peft_does_not_load_a_part_of_an_adapter(
    change: dict[str, Any], message: str, base: Path, copied: Path
) -> None:
    """By itself it warns of factors that are missing, and is silent about those that it leaves out."""
    rewritten(copied, CONFIG, **change)
    with pytest.raises(ailora.InputError, match=message):
        load_peft_adapter(loaded(base), copied)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["lora_magnitude_vector", "norm.weight"])
def test_numbers_that_are_none_are_merged_and_exported_from_no_tensor(
    part: str, value: float, base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    config = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, modules_to_save=["norm"], task_type="CAUSAL_LM")
    get_peft_model(loaded(base), config).save_pretrained(folder)
    tensors = load_file(folder / WEIGHTS)
    tensors |= {name: torch.full_like(tensor, value) for name, tensor in tensors.items() if part in name}
    save_file(tensors, folder / WEIGHTS)
    for write in (lambda: merge(str(base), folder, tmp_path / "out"), lambda: export(folder, tmp_path / "out")):
        with pytest.raises(ailora.InputError, match=f"{part}.* holds NaN or infinite entries"):
            write()


def test_a_tensor_without_entries_is_refused(copied: Path) -> None:
    tensors = load_file(copied / WEIGHTS)
    name = next(name for name in tensors if name.endswith("lora_B.weight"))
    save_file(tensors | {name: tensors[name][:0].contiguous()}, copied / WEIGHTS)
    with pytest.raises(ailora.InputError, match="is empty: the file is damaged"):
        AdapterCheckpoint.open(copied)


def test_a_module_that_was_trained_whole_and_is_not_in_the_file(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM")
    get_peft_model(loaded(base), config).save_pretrained(folder)
    tensors = load_file(folder / WEIGHTS)
    save_file({name: tensor for name, tensor in tensors.items() if "model.norm" not in name}, folder / WEIGHTS)
    readers = (
        lambda: merge(str(base), folder, tmp_path / "out"),
        lambda: export(folder, tmp_path / "out"),
        lambda: load_peft_adapter(loaded(base), folder),
    )
    for read in readers:
        with pytest.raises(ailora.InputError, match=r"has no .*model\.norm\.weight.*: the file is incomplete"):
            read()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors.pop("base_model.model.classifier.bias"), r"has no classifier\.bias.*is incomplete"),
        (
            lambda tensors: tensors["base_model.model.classifier.bias"].fill_(float("nan")),
            "holds NaN or infinite entries",
        ),
    ],
)
def test_training_does_not_resume_with_half_a_head(damage: Any, message: str, tmp_path: Path) -> None:
    bert = FAMILIES["bert"]
    ailora.save_adapter(ailora.adapt(bert.model(), rank=4), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    damage(tensors)
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ailora.InputError, match=message):
        ailora.resume(bert.model(), tmp_path)


def test_a_named_pipe_as_a_result_is_not_waited_for(adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "run" / "adapter")
    (tmp_path / "run" / "config.yaml").touch()
    os.mkfifo(tmp_path / "run" / "result.json")
    assert inspect(str(tmp_path / "run"))["metrics"] is None


def test_a_named_pipe_as_a_configuration_is_not_waited_for(base: Path, copied: Path) -> None:
    (copied / CONFIG).unlink()
    os.mkfifo(copied / CONFIG)
    with pytest.raises(ailora.InputError, match=r"has no adapter_config\.json"):
        load_peft_adapter(loaded(base), copied)


def test_an_adapter_in_the_place_of_a_model_is_named(adapter: Path, copied: Path, tmp_path: Path) -> None:
    with pytest.raises(ailora.InputError, match=r"holds an adapter .*, expected a model"):
        merge(str(copied), adapter, tmp_path / "out")
    (copied / CONFIG).unlink()
    with pytest.raises(ailora.InputError, match=r"has no config\.json"):
        init(str(copied), tmp_path / "out", rank=4)


def test_a_model_that_a_command_has_not_finished_is_no_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(base, tmp_path / "model"))
    (model / ".ailora").mkdir()
    (model / ".ailora" / "request.json").write_text("{}")
    for read in (
        lambda: init(str(model), tmp_path / "out", rank=4),
        lambda: merge(str(model), adapter, tmp_path / "o"),
    ):
        with pytest.raises(ailora.InputError, match="is not finished: repeat the command that began it"):
            read()


def test_a_whole_weight_of_a_module_that_has_factors(copied: Path) -> None:
    tensors = load_file(copied / WEIGHTS)
    name = next(name for name in tensors if name.endswith("lora_A.weight"))
    tensors[name.replace("lora_A.", "")] = tensors[name].clone()
    save_file(tensors, copied / WEIGHTS)
    with pytest.raises(ailora.InputError, match="is the full weight of a module with LoRA factors"):
        AdapterCheckpoint.open(copied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_attn_implementation": "kernels-community/flash-attn"}, "_attn_implementation names code on the hub"),
        ({"text_config": {"attn_implementation": "a/b"}}, "attn_implementation names code on the hub"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000, expected at most"),
    ],
)
def test_configurations_of_models_that_ask_for_code_or_for_too_much(
    changes: dict[str, Any], message: str, base: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(base, tmp_path / "model"))
    rewritten(model, "config.json", **changes)
    for read in (lambda: init(str(model), tmp_path / "out", rank=4), lambda: validate_weights(str(model))):
        with pytest.raises(ailora.InputError, match=message):
            read()


def test_a_link_in_a_model_does_not_bring_a_file_of_the_machine_into_what_is_merged(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(base, tmp_path / "model"))
    (tmp_path / "secret").write_text("hunter2")
    (model / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ailora.InputError, match=r"tokenizer\.json is a link to .*secret, outside its folder"):
        merge(str(model), adapter, tmp_path / "out")
    assert "hunter2" not in "".join(p.read_text(errors="replace") for p in tmp_path.glob("out/**/*") if p.is_file())


@pytest.mark.parametrize("subfolder", ["chat_templates", "1_Pooling"])
def test_a_linked_subfolder_of_a_model_is_not_copied(subfolder: str, base: Path, adapter: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(base, tmp_path / "model"))
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "secret").write_text("hunter2")
    (model / "modules.json").write_text('[{"path": "1_Pooling"}]')
    (model / subfolder).symlink_to(tmp_path / "private")
    with pytest.raises(ailora.InputError, match=rf"{subfolder}/secret is a link to .*secret, outside its folder"):
        merge(str(model), adapter, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("secret"))


def test_files_of_the_hubs_cache_are_copied(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Its snapshots hold links to blobs beside them."""
    (tmp_path / "blobs").mkdir()
    model = Path(shutil.copytree(base, tmp_path / "snapshots" / "main"))
    (tmp_path / "blobs" / "abc").write_text("{}")
    (model / "tokenizer.json").symlink_to(tmp_path / "blobs" / "abc")
    merge(str(model), adapter, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


def header_of(folder: Path) -> tuple[dict[str, Any], bytes]:
    content = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(folder: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data)


def renamed(old: str, new: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda header: {name.replace(old, new): entry for name, entry in header.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("layers.0.self_attn.q_proj.lora_A", "layers.0.self_attn.q_proj.x"), "q_proj has no lora_A"),
        (renamed("lora_A.weight", "lora_A.bias"), "is not the factor of a linear module"),
        (renamed("lora_", "nothing_"), "holds no LoRA factors"),
        (renamed("layers.0", "layers.7"), r"does not belong to .*: only one of the two files has"),
    ],
)
def test_files_of_other_names(change: Any, message: str, copied: Path) -> None:
    header, data = header_of(copied)
    with_header(copied, change(header), data)
    with pytest.raises(ailora.InputError, match=message):
        AdapterCheckpoint.open(copied)


def test_pickled_adapters_are_not_opened(copied: Path) -> None:
    (copied / WEIGHTS).rename(copied / "adapter_model.bin")
    with pytest.raises(ailora.InputError, match=r"has no adapter_model\.safetensors, and pickled adapters are never"):
        AdapterCheckpoint.open(copied)


PLAN_LIES: dict[str, Any] = {
    "rank": 10**9,
    "rows": [[0, 10**9]],
    "shape": [-1, 4],
    "alpha": -1,
    "scaling": 0,
    "module": "",
    "role": "queen",
    "dtype": 7,
    "init": {"init": "none"},
}


@pytest.mark.parametrize("lie", PLAN_LIES)
def test_plans_that_lie(lie: str, copied: Path) -> None:
    sidecar = json.loads((copied / SIDECAR).read_text())
    sidecar["plan"]["adapters"][1][lie] = PLAN_LIES[lie]
    (copied / SIDECAR).write_text(json.dumps(sidecar))
    with pytest.raises(ailora.InputError, match="not a plan"):
        AdapterMetadata.read(copied / SIDECAR)


def test_plans_without_or_with_two_of_an_adapter(copied: Path) -> None:
    plan = json.loads((copied / SIDECAR).read_text())["plan"]
    for adapters in ([], plan["adapters"][:1] * 2):
        rewritten(copied, SIDECAR, plan={**plan, "adapters": adapters})
        with pytest.raises(ailora.InputError, match="not a plan"):
            AdapterCheckpoint.open(copied)


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 100_000, '{"format_version": 2}', "\0"])
def test_what_is_no_sidecar(content: str, copied: Path) -> None:
    (copied / SIDECAR).write_text(content)
    with pytest.raises(ailora.InputError, match=r"ailora\.json"):
        AdapterCheckpoint.open(copied)


def test_code_of_a_repository_is_never_run(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "model")
    (tmp_path / "model" / "code.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')\n")
    auto = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    rewritten(tmp_path / "model", "config.json", auto_map=auto, model_type="mine", architectures=["Mine"])
    for command in (
        lambda: init(str(tmp_path / "model"), tmp_path / "out", rank=4),
        lambda: inspect(str(tmp_path / "model")),
    ):
        with pytest.raises(ailora.InputError, match="cannot load the configuration"):
            command()
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 0},
        {"hidden_size": "wide"},
        {"num_hidden_layers": -1},
        {"hidden_act": "none"},
        {"torch_dtype": "x"},
        {"architectures": "Llama"},
        {"architectures": [3]},
        {"architectures": ["AutoModel"]},
    ],
)
def test_damaged_configurations_of_models(changes: dict[str, Any], base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "model")
    rewritten(tmp_path / "model", "config.json", **changes)
    expected = AutoConfig.from_pretrained(base).model_type
    shown = ""
    try:
        assert load_on_meta(str(tmp_path / "model")).config.model_type == expected
    except ailora.InputError as error:
        shown = str(error)
    assert not shown or "the configuration of model" in shown


# Fuzzing: a file of an adapter with one value changed, removed, or with raw bytes in its place.

mutations = st.tuples(
    st.sampled_from([CONFIG, SIDECAR, WEIGHTS]),
    st.lists(st.integers(0, 30), min_size=1, max_size=5),
    st.one_of(json_values, st.sampled_from([2**31, 2**63, 1e308, -1, "", "../../x", "(a+)+$", [], {}]), st.just(...)),
)


def mutated(data: Any, path: list[int], value: Any) -> Any:
    """`data` with the value at a path of positions replaced; `...` removes it."""
    if not isinstance(data, dict | list) or not data or not path:
        return None if value is ... else value
    keys = list(data) if isinstance(data, dict) else list(range(len(data)))
    chosen, copy = keys[path[0] % len(keys)], data.copy()
    if value is ... and len(path) == 1:
        del copy[chosen]
    else:
        copy[chosen] = mutated(data[chosen], path[1:], value)
    return copy


def fuzz_adapter(
    original: Path, base: Path, folder: Path, mutation: tuple[str, list[int], Any], raw: bytes | None
) -> None:
    name, path, value = mutation
    shutil.rmtree(folder, ignore_errors=True)
    work = Path(shutil.copytree(original, folder / "adapter"))
    if raw is not None:
        (work / name).write_bytes(raw)
    elif name == WEIGHTS:
        header, data = header_of(work)
        with_header(work, mutated(header, path, value), data)
    else:
        (work / name).write_text(json.dumps(mutated(json.loads((work / name).read_text()), path, value)))
    for command in (
        lambda: inspect(str(work)),
        lambda: export(work, folder / "export", rank=2),
        lambda: verify(work, str(base)),
        lambda: merge(str(base), work, folder / "merge"),
    ):
        try:
            command()
        except ailora.AiloraError:
            continue
    assert {entry.name for entry in folder.iterdir()} <= {"adapter", "export", "merge"}


raws = st.one_of(st.none(), st.none(), st.none(), st.binary(max_size=40))


@pytest.mark.ci
@given(mutations, raws)
@settings(FUZZ, max_examples=60)
def test_fuzzed_adapters(adapter: Path, base: Path, tmp_path: Path, mutation: Any, raw: bytes | None) -> None:
    fuzz_adapter(adapter, base, tmp_path / "fuzz", mutation, raw)


@pytest.mark.slow
@given(mutations, raws)
@settings(FUZZ, max_examples=3000)
def test_many_fuzzed_adapters(adapter: Path, base: Path, tmp_path: Path, mutation: Any, raw: bytes | None) -> None:
    fuzz_adapter(adapter, base, tmp_path / "fuzz", mutation, raw)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 99}, r"embed_tokens\.weight .*: .*config\.json gives the shape \(99, \d+\)"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            r"has a quantization_config \(bitsandbytes\), but no tensor of the checkpoint is quantized: remove the key",
        ),
    ],
)
def test_a_base_whose_configuration_describes_other_weights_is_not_merged(
    changes: dict[str, Any], message: str, base: Path, copied: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(base, tmp_path / "base"))
    rewritten(other, "config.json", **changes)
    with pytest.raises(ailora.ModelError, match=message):
        merge(str(other), copied, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_weights_that_are_quantized_on_loading_are_merged(base: Path, copied: Path, tmp_path: Path) -> None:
    """As the unquantized weights of BitNet, which are published for fine-tuning."""
    other = Path(shutil.copytree(base, tmp_path / "base"))
    online = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    rewritten(other, "config.json", quantization_config=online)
    assert merge(str(other), copied, tmp_path / "merged").merged
