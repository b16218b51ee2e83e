"""`init`: the adapter that `adapt` would start with, without the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import ailora
from ailora.checkpoints import InitPlan, export, init, merge, module_tasks, verify
from ailora.checkpoints.output_dir import OutputDir
from ailora.roles.catalog import FAMILIES as CATALOG
from tests.contracts.test_families import MADE_AS, OFTEN, REMOTE
from tests.families import FAMILIES
from tests.tiers import in_tiers
from tests.tiny_models import LAYERS, tiny_model

RANK = 4
WEIGHTS = "adapter_model.safetensors"

#: Their checkpoints hold queries, keys and values in one tensor that transformers splits when it loads them.
CONVERTED = {
    *("gradium_phonon_tts", "gte", "hrm_text", "jina_embeddings_v3", "molmo2_text", "nomic_bert", "radio", "step3p7"),
    *("tipsv2_text_model", "tipsv2_vision_model"),
}
#: One of each way to store weights: separate, transposed, fused, by head, experts, tied.
FAST_STORAGE = {"bert", "bloom", "dbrx", "falcon", "gpt2", "gpt_neox", "llama", "mixtral", "phi3", "t5"}
MADE = sorted({MADE_AS.get(family, family) for family in CATALOG if family not in REMOTE})


def saved(family: str, folder: Path, **options: Any) -> str:
    FAMILIES[family].model().save_pretrained(folder, **options)
    return str(folder)


def same_files(one: Path, other: Path) -> None:
    ours, theirs = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        assert torch.equal(ours[name], theirs[name]), name


def factors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in load_file(folder / WEIGHTS).items() if ".lora_" in name}


@pytest.mark.parametrize("model_type", in_tiers(MADE, fast=FAST_STORAGE, ci=OFTEN))
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
def test_every_family_gets_the_file_that_adapt_saves(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path / "base")
    _mend_configuration(tmp_path / "base" / "config.json")
    if model_type in CONVERTED:
        with pytest.raises(ailora.ModelError, match="transformers computes this weight from other tensors"):
            init(str(tmp_path / "base"), tmp_path / "adapter", rank=2, roles=tuple(_roles(model)))
        return
    init(str(tmp_path / "base"), tmp_path / "adapter", rank=2)
    adapted = ailora.adapt(model, rank=2, modules_to_save=[])
    ailora.save_adapter(adapted, tmp_path / "live")
    same_files(tmp_path / "adapter", tmp_path / "live")
    ours, theirs = (json.loads((tmp_path / f / "ailora.json").read_text()) for f in ("adapter", "live"))
    assert ours["fingerprints"] == theirs["fingerprints"]
    assert [a["module"] for a in ours["plan"]["adapters"]] == [a["module"] for a in theirs["plan"]["adapters"]]


def _mend_configuration(file: Path) -> None:
    """Shrinking a configuration leaves the names of stages and layers that are not there any more."""

    def mended(config: dict[str, Any]) -> dict[str, Any]:
        kept = {k: v for k, v in config.items() if k not in ("out_features", "out_indices", "stage_names")}
        if layers := kept.get("per_layer_config"):
            kept["per_layer_config"] = {number: layer for number, layer in layers.items() if int(number) < LAYERS}
        return {key: mended(value) if isinstance(value, dict) else value for key, value in kept.items()}

    file.write_text(json.dumps(mended(json.loads(file.read_text()))))


def _roles(model: torch.nn.Module) -> list[str]:
    return list(dict.fromkeys(p.role.value for p in ailora.find_projections(model)))


@pytest.mark.parametrize("options", [{"rslora": True}, {"alpha": 6}, {"policy": {"query": "minor", "value": "lora"}}])
def test_options_reach_the_file(options: dict[str, Any], tmp_path: Path) -> None:
    base = saved("llama", tmp_path / "base")
    init(base, tmp_path / "adapter", rank={"query": 4, "value": 2}, **options)
    model = tf.AutoModelForCausalLM.from_pretrained(base)
    adapted = ailora.adapt(model, rank={"query": 4, "value": 2}, **options)
    ailora.save_adapter(adapted, tmp_path / "live")
    ours, theirs = factors_of(tmp_path / "adapter"), factors_of(tmp_path / "live")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.shape == theirs[name].shape
        # Plain LoRA draws its A from a seed of its own here.
        if "v_proj.lora_A" not in name or "policy" not in options:
            assert torch.equal(tensor, theirs[name]), name
    configs = [json.loads((tmp_path / f / "adapter_config.json").read_text()) for f in ("adapter", "live")]
    for config in configs:
        config.pop("base_model_name_or_path")
        config["target_modules"] = sorted(config["target_modules"])
    assert configs[0] == configs[1]


def test_a_dora_starts_with_the_magnitudes_of_the_weights(tmp_path: Path) -> None:
    base = saved("llama", tmp_path / "base")
    init(base, tmp_path / "adapter", rank=4, dora=True)
    model = tf.AutoModelForCausalLM.from_pretrained(base)
    ailora.save_adapter(ailora.adapt(model, rank=4, dora=True), tmp_path / "live")
    ours, theirs = load_file(tmp_path / "adapter" / WEIGHTS), load_file(tmp_path / "live" / WEIGHTS)
    assert ours.keys() == theirs.keys()
    assert any("magnitude" in name for name in ours)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=0)


def test_a_dora_of_zero_rows_is_refused(tmp_path: Path) -> None:
    model = tf.AutoModelForCausalLM.from_pretrained(saved("llama", tmp_path / "whole"))
    with torch.no_grad():
        model.get_parameter("model.layers.1.self_attn.v_proj.weight")[0] = 0
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(ailora.ModelError, match=r"layers\.1\.self_attn\.v_proj: 1 of .* rows are zero, and dora"):
        init(tmp_path / "base", tmp_path / "adapter", rank=4, dora=True)


TASKS = {
    "SEQ_CLS": (tf.AutoModelForSequenceClassification, peft.PeftModelForSequenceClassification),
    "TOKEN_CLS": (tf.AutoModelForTokenClassification, peft.PeftModelForTokenClassification),
    "QUESTION_ANS": (tf.AutoModelForQuestionAnswering, peft.PeftModelForQuestionAnswering),
    "CAUSAL_LM": (tf.AutoModelForCausalLM, peft.PeftModelForCausalLM),
    "FEATURE_EXTRACTION": (tf.AutoModel, peft.PeftModelForFeatureExtraction),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_file_loads_under_the_class_of_every_task(task: str, family: str, tmp_path: Path) -> None:
    """Names in the file depend on the class: a `LlamaModel` has no `model.` before its layers."""
    base = saved(family, tmp_path / "base")
    if (family, task) == ("llama", "QUESTION_ANS"):
        # That class calls its base `transformer`, and loads nothing of a language model's checkpoint.
        with pytest.raises(ailora.ModelError, match=r"no tensor of the checkpoint is named transformer\.layers"):
            init(base, tmp_path / "adapter", rank=4, task_type=task)
        return
    init(base, tmp_path / "adapter", rank=4, task_type=task, num_labels=2)
    auto, wrapped = TASKS[task]
    options = {} if task in ("CAUSAL_LM", "FEATURE_EXTRACTION") else {"num_labels": 2, "ignore_mismatched_sizes": True}
    model = auto.from_pretrained(base, **options).eval()
    inputs = {"input_ids": FAMILIES[family].inputs()["input_ids"][:1]}
    with torch.no_grad():
        adapted = peft.PeftModel.from_pretrained(model, tmp_path / "adapter")
        assert type(adapted) is wrapped
        started = adapted(**inputs)[0]
        with adapted.disable_adapter():
            expected = adapted(**inputs)[0]
        if not options:
            assert torch.equal(started, expected)
    state = peft.get_peft_model_state_dict(adapted)
    filed = load_file(tmp_path / "adapter" / WEIGHTS)
    assert state.keys() == filed.keys()
    assert any(".lora_" not in name for name in filed) == bool(options)
    for name, tensor in filed.items():
        assert torch.equal(state[name], tensor)


def test_a_head_of_the_checkpoint_is_kept_and_a_new_one_is_drawn(tmp_path: Path) -> None:
    base = saved("bert", tmp_path / "base")
    init(base, tmp_path / "kept", rank=4)
    model = tf.AutoModelForSequenceClassification.from_pretrained(base).eval()
    inputs = FAMILIES["bert"].inputs()
    with torch.no_grad():
        expected = model(**inputs).logits
        assert torch.equal(peft.PeftModel.from_pretrained(model, tmp_path / "kept")(**inputs).logits, expected)
    heads = []
    for name, seed in {"one": 1, "same": 1, "other": 2}.items():
        torch.manual_seed(len(heads))
        state = torch.get_rng_state()
        init(base, tmp_path / name, rank=4, num_labels=5, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        heads.append(load_file(tmp_path / name / WEIGHTS)["base_model.model.classifier.weight"])
    assert heads[0].shape == (5, 32)
    assert 0.01 < heads[0].std() < 0.03  # the configuration's initializer_range is 0.02
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_sequence_to_sequence_model_is_known_by_its_architecture(tmp_path: Path) -> None:
    base = saved("t5", tmp_path / "base")
    init(base, tmp_path / "adapter", rank=4)
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    peft.AutoPeftModelForSeq2SeqLM.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_shards_in_any_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    model = FAMILIES["llama"].model().to(dtype)
    model.save_pretrained(tmp_path / "base", max_shard_size="10KB")
    assert len(list((tmp_path / "base").glob("model-*.safetensors"))) > 2
    init(str(tmp_path / "base"), tmp_path / "adapter", rank=4)
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert loaded.dtype is dtype
    ailora.save_adapter(ailora.adapt(loaded, rank=4), tmp_path / "live")
    same_files(tmp_path / "adapter", tmp_path / "live")
    assert verify(tmp_path / "live", str(tmp_path / "base")).passed


@pytest.mark.ci
def test_workers_make_the_same_file(tmp_path: Path) -> None:
    base = saved("llama", tmp_path / "base")
    init(base, tmp_path / "one", {"query": "principal", "value": "minor", "output": "lora"}, rank=4)
    report = init(base, tmp_path / "two", {"query": "principal", "value": "minor", "output": "lora"}, rank=4, workers=2)
    assert report.modules == 6
    same_files(tmp_path / "one", tmp_path / "two")


def test_the_real_llama_on_the_real_device(shared: Path, tmp_path: Path) -> None:
    base = str(shared / "lm" / "pico-llama")
    report = init(base, tmp_path / "adapter", rank=8)
    assert report.modules == 12
    assert report.bytes_read == InitPlan.from_model(base).bytes_to_read == 12 // 2 * (256 * 256 + 128 * 256) * 4
    loaded = tf.AutoModelForCausalLM.from_pretrained(base)
    ailora.save_adapter(ailora.adapt(loaded, rank=8), tmp_path / "live")
    same_files(tmp_path / "adapter", tmp_path / "live")


def test_the_same_call_finds_nothing_left_to_do(tmp_path: Path) -> None:
    base = saved("llama", tmp_path / "base")
    first = init(base, tmp_path / "adapter", rank=4)
    stamp = (tmp_path / "adapter" / WEIGHTS).stat().st_mtime_ns
    again = init(base, tmp_path / "adapter", rank=4)
    assert (again.resumed, again.bytes_read, again.floored) == (4, 0, first.floored)
    assert (tmp_path / "adapter" / WEIGHTS).stat().st_mtime_ns == stamp


def test_other_work_in_the_folder_is_not_overwritten(tmp_path: Path) -> None:
    base = saved("llama", tmp_path / "base")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(ailora.InputError, match=r"holds no output of this command .*thesis\.txt.*--force"):
        init(base, tmp_path / "mine", rank=4)
    assert [f.name for f in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    init(base, tmp_path / "mine", rank=4, force=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    with pytest.raises(
        ailora.InputError, match="holds the finished result of a command with different inputs or options"
    ):
        init(base, tmp_path / "mine", rank=2)
    init(base, tmp_path / "mine", rank=2, force=True)
    same = init(base, tmp_path / "other", rank=2)
    assert same.modules == 4
    same_files(tmp_path / "mine", tmp_path / "other")


def test_what_is_read_is_never_written_into(adapter: Path, tmp_path: Path) -> None:
    base = Path(saved("llama", tmp_path / "base"))
    before = {file.name: file.read_bytes() for file in base.iterdir()}
    for command in (
        lambda: init(str(base), base, rank=4, force=True),
        lambda: merge(str(base), adapter, tmp_path / "x" / ".." / "base", force=True),
        lambda: merge(str(base), adapter, adapter, force=True),
        lambda: export(adapter, adapter, force=True),
    ):
        with pytest.raises(ailora.InputError, match=r"is an input inside the output folder .*: choose another"):
            command()
    assert {file.name: file.read_bytes() for file in base.iterdir()} == before


def test_an_estimate_reads_nothing(tmp_path: Path) -> None:
    base = saved("llama", tmp_path / "base")
    work = InitPlan.from_model(base, rank=4)
    for file in (tmp_path / "base").glob("*.safetensors"):
        size = file.stat().st_size
        header = file.read_bytes()[: min(t.start for t in work.checkpoint.tensors.values())]
        file.write_bytes(header)
        with file.open("r+b") as stream:
            stream.truncate(size)
    estimate = work.estimate()
    assert estimate["modules"] == 4
    assert estimate["bytes_to_read"] == 2 * (32 * 32 + 16 * 32) * 4
    assert estimate["memory_bound_bytes"] == 6 * 4 * 32 * 32 + 128 * 2**20
    assert estimate["flops"] > 0
    assert estimate["seconds"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"form": "residual"},
            r"cannot write the form 'residual': .* ailora\.adapt",
        ),
        ({"rank": 40}, "rank must be .*, got 40 .model.layers.0.self_attn.q_proj"),
        ({"seed": "x"}, "seed must be a whole number, got 'x'"),
        ({"workers": 0}, "workers must be a whole number of at least 1, got 0"),
        ({"device": "tpu"}, "device 'tpu' is not available"),
        ({"task_type": "SEQ_CLASS"}, "unknown task type 'SEQ_CLASS'"),
        ({"num_labels": 0}, "num_labels must be a whole number of at least 1, got 0"),
        ({"num_labels": True}, "num_labels must be a whole number of at least 1, got True"),
        ({"rank": float("nan")}, "rank must be .*, got nan"),
        ({"modules": b"q_proj"}, "modules must be a regular expression, got b'q_proj'"),
        ({"modules_to_save": [0]}, "modules_to_save must be a list of names"),
        ({"modules_to_save": ["self_attn"]}, "'self_attn' is or contains model.layers.0.self_attn.q_proj"),
    ],
)
def test_impossible_requests_leave_nothing(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    base = saved("llama", tmp_path / "base")
    with pytest.raises(ailora.AiloraError, match=message):
        init(base, tmp_path / "adapter", **options)
    assert not (tmp_path / "adapter" / "adapter_config.json").exists()


def test_models_that_are_not_here(tmp_path: Path) -> None:
    with pytest.raises(ailora.InputError, match=r"neither a folder nor in the hub's cache; .* hf download"):
        init("nobody/nothing", tmp_path / "adapter")
    base = Path(saved("llama", tmp_path / "base"))
    (base / "model.safetensors").unlink()
    with pytest.raises(ailora.InputError, match="holds no safetensors files"):
        init(str(base), tmp_path / "adapter")
    torch.save({}, base / "pytorch_model.bin")
    with pytest.raises(ailora.InputError, match=r"never opened\. If you trust .*, convert it once.*save_pretrained"):
        init(str(base), tmp_path / "adapter")


def test_weights_that_have_no_decomposition(tmp_path: Path) -> None:
    base = Path(saved("llama", tmp_path / "base"))
    state = load_file(base / "model.safetensors")
    name = "model.layers.1.self_attn.v_proj.weight"
    save_file({**state, name: state[name].fill_(float("nan"))}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ailora.ModelError, match=r"v_proj\.weight .* holds NaN or infinite entries"):
        init(str(base), tmp_path / "adapter", rank=4)
    assert not (tmp_path / "adapter" / "adapter_config.json").exists()
    save_file({**state, name: state[name].zero_().to(torch.int8)}, base / "model.safetensors", {"format": "pt"})
    # The request that failed would fail again: another one may have the folder.
    with pytest.raises(ailora.ModelError, match="is quantized: give the unquantized checkpoint"):
        init(str(base), tmp_path / "adapter", rank=4)
    save_file({**state, name: state[name][:, :8].clone()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ailora.ModelError, match=r"expected the shape \(16, 32\) for model\.layers\.1"):
        init(str(base), tmp_path / "adapter", rank=4, force=True)


def test_a_zero_weight_is_floored_and_said(tmp_path: Path) -> None:
    base = Path(saved("llama", tmp_path / "base"))
    state = load_file(base / "model.safetensors")
    name = "model.layers.1.self_attn.v_proj.weight"
    save_file({**state, name: torch.zeros_like(state[name])}, base / "model.safetensors", {"format": "pt"})
    report = init(str(base), tmp_path / "adapter", rank=4)
    assert report.floored == {"model.layers.1.self_attn.v_proj": 4}
    assert verify(tmp_path / "adapter", str(base)).passed


def test_a_hub_id_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hub's client lays it out: links from the snapshot to the blobs beside it."""
    cache = tmp_path / "hub"
    repository = cache / "models--org--name"
    snapshot, blobs = repository / "snapshots" / ("a" * 40), repository / "blobs"
    FAMILIES["llama"].model().save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    blobs.mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(Path("../../blobs") / str(number))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    init("org/name", tmp_path / "adapter", rank=4)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/name"
    assert verify(tmp_path / "adapter", "org/name").passed


def test_force_replaces_what_it_writes_and_no_other_file(adapter: Path, tmp_path: Path) -> None:
    base = saved("llama", tmp_path / "base")
    out = tmp_path / "out"
    init(base, out, rank=4)
    save_file({"mine": torch.ones(2)}, out / "my_embeddings.safetensors")
    init(base, out, rank=2, force=True)
    assert load_file(out / "my_embeddings.safetensors")["mine"].tolist() == [1, 1]
    # Beside the shards of a model it would be taken for one of them.
    with pytest.raises(ailora.InputError, match=r"my_embeddings\.safetensors was not written by this command"):
        merge(base, adapter, out, force=True)
    assert (out / "my_embeddings.safetensors").exists()


def test_links_do_not_lead_to_what_is_read(adapter: Path, tmp_path: Path) -> None:
    store, base = Path(saved("llama", tmp_path / "store")), tmp_path / "base"
    base.mkdir()
    for file in store.iterdir():
        (base / file.name).symlink_to(file)
    with pytest.raises(ailora.InputError, match="is an input inside the output folder"):
        merge(str(base), adapter, store, force=True)
    assert (store / "model.safetensors").stat().st_size > 1000


def test_a_lost_or_changed_file_is_noticed(tmp_path: Path) -> None:
    base = saved("llama", tmp_path / "base")
    init(base, tmp_path / "lost", rank=4)
    (tmp_path / "lost" / WEIGHTS).unlink()
    with pytest.raises(ailora.InputError, match="files have changed"):
        init(base, tmp_path / "lost", rank=4)
    init(base, tmp_path / "lost", rank=4, force=True)
    init(base, tmp_path / "start", rank=4)
    model = ailora.resume(tf.AutoModelForCausalLM.from_pretrained(base), tmp_path / "start")
    ailora.save_adapter(model, tmp_path / "start")
    with pytest.raises(ailora.InputError, match="files have changed"):
        init(base, tmp_path / "start", rank=4)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_modules_to_save_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    """A tied head is that of the embeddings; a module that no checkpoint has is not made up."""
    base = saved("llama", tmp_path / "base")
    init(base, tmp_path / "adapter", rank=4, modules_to_save=["lm_head"])
    model = tf.AutoModelForCausalLM.from_pretrained(base).eval()
    inputs = FAMILIES["llama"].inputs()
    with torch.no_grad():
        expected = model(**inputs).logits
        assert torch.equal(peft.PeftModel.from_pretrained(model, tmp_path / "adapter")(**inputs).logits, expected)
    FAMILIES["bert"].model().bert.save_pretrained(tmp_path / "bare")
    config = json.loads((tmp_path / "bare" / "config.json").read_text())
    (tmp_path / "bare" / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    with pytest.raises(ailora.ModelError, match=r"modules_to_save: the checkpoint has no tensor of"):
        init(str(tmp_path / "bare"), tmp_path / "none", rank=4, modules_to_save=["transform"])


def test_what_the_configuration_says_of_heads(tmp_path: Path) -> None:
    FAMILIES["llama"].model().to(torch.bfloat16).save_pretrained(tmp_path / "base")
    init(str(tmp_path / "base"), tmp_path / "adapter", rank=4, task_type="SEQ_CLS", num_labels=3)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["classifier", "score"]
    assert load_file(tmp_path / "adapter" / WEIGHTS)["base_model.model.score.weight"].dtype is torch.float32


def test_odd_models_and_folders_are_refused(tmp_path: Path) -> None:
    base = Path(saved("llama", tmp_path / "base"))
    assert init(base, tmp_path / "adapter", rank=4).modules == 4  # a Path is a model too
    for model in (None, 0, b"x", [], "", "a\0b"):
        with pytest.raises(ailora.InputError, match="expected a folder, a hub id"):
            init(model, tmp_path / "none")  # type: ignore[arg-type]
    for out in (None, 0, "", "a\0b", "x" * 5000, "\ud83d", "~nobody-of-that-name/x"):
        with pytest.raises(ailora.InputError, match="expected a path to write to"):
            init(base, out, rank=4)  # type: ignore[arg-type]
    for adapter in (None, 0, b"x"):
        with pytest.raises(ailora.InputError, match="expected the folder of an adapter"):
            verify(adapter, base)  # type: ignore[arg-type]
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "architectures"}))
    with pytest.raises(ailora.InputError, match=r"names no architecture .*--task-type"):
        init(base, tmp_path / "none", rank=4)
    init(base, tmp_path / "named", rank=4, task_type="CAUSAL_LM")


def test_links_in_the_folder_are_not_followed(tmp_path: Path) -> None:
    base = saved("llama", tmp_path / "base")
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "keep.json").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".adapter_config.json.ailora-partial").symlink_to(victim / "keep.json")
    init(base, tmp_path / "out", rank=4, force=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".ailora").symlink_to(victim)
    with pytest.raises(ailora.InputError, match="is a link, and nothing is written through links"):
        init(base, tmp_path / "other", rank=4, force=True)
    assert {file.name: file.read_text() for file in victim.iterdir()} == {"keep.json": "mine"}


@pytest.mark.parametrize("force", [False, True])
def test_a_link_in_the_place_of_a_file_is_refused(tmp_path: Path, force: bool) -> None:
    base, out, victim = saved("llama", tmp_path / "base"), tmp_path / "out", tmp_path / "keep"
    victim.write_text("mine")
    init(base, out, rank=4)
    (out / "adapter_config.json").unlink()
    (out / "adapter_config.json").symlink_to(victim)
    with pytest.raises(ailora.InputError, match=r"adapter_config\.json is a link"):
        init(base, out, rank=4, force=force)
    (out / "adapter_config.json").unlink()
    (out / ".ailora" / "pieces").symlink_to(tmp_path)
    with pytest.raises(ailora.InputError, match=r"pieces is a link"):
        init(base, out, rank=4, force=force)
    assert victim.read_text() == "mine"


def test_only_force_replaces_what_was_put_where_an_attempt_failed(tmp_path: Path) -> None:
    base, out = saved("llama", tmp_path / "base"), tmp_path / "out"
    with (
        pytest.raises(ailora.ModelError),
        OutputDir(out).acquire({"a": 1}, reads=[], writes=["a.bin"], force=False),
    ):
        raise ailora.ModelError("fails for good")
    (out / "adapter_config.json").write_text("mine")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ailora.InputError, match=r"adapter_config\.json was not written by this command"):
        init(base, out, rank=4)
    assert (out / "adapter_config.json").read_text() == "mine"
    init(base, out, rank=4, force=True)
    assert (out / "adapter_config.json").read_text() != "mine"
    assert (out / "notes.txt").read_text() == "mine"


def test_a_piece_that_is_damaged_or_of_another_module_is_made_again(tmp_path: Path) -> None:
    base = saved("llama", tmp_path / "base")
    init(base, tmp_path / "expected", rank=4)
    work = InitPlan.from_model(base, rank=4)
    pieces = tmp_path / "out" / ".ailora" / "pieces"
    with OutputDir(tmp_path / "out").acquire(work.request, reads=[], writes=[], force=False):
        for task in work.build_tasks(pieces, device="cpu", cached=False):
            module_tasks.run_task(task)
    (pieces / "000000.safetensors").write_bytes((pieces / "000001.safetensors").read_bytes())
    (pieces / "000002.safetensors").write_bytes(b"junk")
    report = init(base, tmp_path / "out", rank=4)
    assert report.resumed == 2
    same_files(tmp_path / "out", tmp_path / "expected")


def test_variables_that_a_launcher_left_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = saved("llama", tmp_path / "base")
    for size, message in (("2", "did not set RANK, MASTER_ADDR, MASTER_PORT"), ("x", "did not set")):
        monkeypatch.setenv("WORLD_SIZE", size)
        with pytest.raises(ailora.InputError, match=message):
            init(base, tmp_path / "out", rank=4)


def test_quantized_checkpoints_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    base = Path(saved("llama", tmp_path / "base"))
    state = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(state, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ailora.ModelError, match="is quantized: give the unquantized checkpoint"):
        init(base, tmp_path / "out", rank=4)
    assert not (tmp_path / "out").exists()
