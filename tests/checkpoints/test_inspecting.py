"""`inspect`: the numbers are those of the matrices themselves."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import ailora
from ailora.atomic_io import write_json
from ailora.checkpoints import export, init, inspect
from tests.checkpoints.conftest import loaded, on_residual_weights, trained
from tests.tiny_models import tiny_model

WEIGHTS = "adapter_model.safetensors"


def rms(values: list[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / len(values))


def test_sizes_spectra_and_movement(base: Path, adapter: Path) -> None:
    found = inspect(str(adapter))
    assert (found["kind"], found["policy"], found["form"]) == ("adapter", "ailora", "anchored")
    assert found["max_lora_rank"] == 8
    assert (found["anchor_inside"], found["trained_whole"]) == (True, False)
    state = load_file(adapter / WEIGHTS)
    for line in found["lines"]:
        leaf = {"query": "q_proj", "value": "v_proj"}[line["role"]]
        pairs = [(state[name], state[name.replace("lora_A", "lora_B")]) for name in state if f"{leaf}.lora_A" in name]
        spectra = [torch.linalg.svdvals((B @ A).double()) for A, B in pairs]
        assert line["modules"] == 2
        assert line["update"] == pytest.approx(rms([float(s.norm()) for s in spectra]), rel=1e-5)
        assert line["values"] == pytest.approx([rms([float(s[i]) for s in spectra]) for i in range(4)], rel=1e-5)
        stable = [float(s.square().sum() / s[0] ** 2) for s in spectra]
        assert line["stable_rank"] == pytest.approx(rms(stable), rel=1e-4)
        anchors = [float(((B[:, 4:] - B[:, :4]) @ A[:4]).norm()) for A, B in pairs]
        assert line["anchor"] == pytest.approx(rms(anchors), rel=1e-5)
        assert line["moved_A"] == pytest.approx(rms([float(A[4:].norm() / A[:4].norm()) for A, _ in pairs]), rel=1e-5)
        moved = [float(B[:, :4].norm() / (B[:, 4:] - B[:, :4]).norm()) for _, B in pairs]
        assert line["moved_B"] == pytest.approx(rms(moved), rel=1e-5)


def test_the_anchor_of_a_policy_is_the_band_of_the_weight(base: Path, tmp_path: Path) -> None:
    init(str(base), tmp_path, rank=4)
    queries = [loaded(base).model.layers[i].self_attn.q_proj.weight.detach() for i in (0, 1)]
    values = [torch.linalg.svdvals(weight) for weight in queries]
    query = next(line for line in inspect(str(tmp_path))["lines"] if line["role"] == "query")
    assert query["anchor"] == pytest.approx(rms([float(s[:4].norm()) for s in values]), rel=1e-5)
    assert query["update"] == query["moved_A"] == query["moved_B"] == query["stable_rank"] == 0


def test_adapters_that_nothing_is_known_of(base: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(loaded(base), config).save_pretrained(tmp_path)
    found = inspect(str(tmp_path))
    assert found["policy"] is None
    names = [line["role"] for line in found["lines"]]
    assert names == ["model.layers.*.mlp.down_proj", "model.layers.*.self_attn.q_proj"]
    assert all(line["update"] > 0 and line["anchor"] is None for line in found["lines"])


@pytest.mark.parametrize("form", ["stock", "residual"])
def test_other_forms(form: str, base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path, form=form)
    found = inspect(str(tmp_path))
    assert (found["form"], found["anchor_inside"], found["trained_whole"]) == (form, True, None)
    assert all(line["update"] > 0 for line in found["lines"])


def test_fused_roles_have_a_line_each(tmp_path: Path) -> None:
    model = ailora.adapt(tiny_model("gpt2"), rank=2)
    ailora.save_adapter(model, tmp_path)
    assert [line["role"] for line in inspect(str(tmp_path))["lines"]] == ["query", "value"]


def test_exports_are_named(adapter: Path, tmp_path: Path) -> None:
    export(adapter, tmp_path / "out", rank=2, dtype="bf16")
    found = inspect(str(tmp_path / "out"))
    assert found["exported"]["rank"] == found["max_lora_rank"] == 2
    assert found["exported"]["dtype"] == "bfloat16"


def test_runs_show_their_metrics(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "adapter").symlink_to(adapter)
    assert inspect(str(tmp_path / "run"))["metrics"] is None
    (tmp_path / "run" / "result.json").write_text(json.dumps({"metrics": {"test": {"accuracy": 0.9}}}))
    found = inspect(str(tmp_path / "run"))
    assert (found["kind"], found["metrics"]) == ("run", {"test": {"accuracy": 0.9}})
    (tmp_path / "run" / "result.json").write_text("{")
    with pytest.raises(ailora.InputError, match=r"result\.json is damaged"):
        inspect(str(tmp_path / "run"))


def test_models_are_read_from_their_headers(base: Path) -> None:
    found = inspect(str(base))
    assert (found["kind"], found["class"], found["model_type"]) == ("model", "LlamaForCausalLM", "llama")
    assert found["shards"] > 1
    roles = {line["role"]: line for line in found["roles"]}
    assert roles["key"] == {"role": "key", "shape": "16 x 32", "dtype": "F32", "modules": 2, "bytes": 2 * 16 * 32 * 4}
    assert set(roles) == {"query", "key", "value", "output", "gate", "up", "down"}


def test_what_is_none_of_these(tmp_path: Path) -> None:
    with pytest.raises(ailora.InputError, match="holds no adapter"):
        inspect(str(tmp_path))


def test_rows_that_a_stock_trainer_filled_count(tmp_path: Path) -> None:
    """A fused weight whose LoRA was trained whole: its update reaches the rows of other roles."""
    model = ailora.adapt(tiny_model("gpt2"), rank=2)
    ailora.save_adapter(model, tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    state = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in state.items()}
    save_file(state, tmp_path / WEIGHTS)
    names = [name for name in state if "lora_A" in name]
    by_role = [slice(0, 4), slice(4, 8)]
    for line, part in zip(inspect(str(tmp_path))["lines"], by_role, strict=True):
        updates = [state[n.replace("lora_A", "lora_B")][:, part] @ state[n][part] for n in names]
        assert line["update"] == pytest.approx(rms([float(update.norm()) for update in updates]), rel=1e-4)


def test_an_adapter_on_residual_weights_says_so(base: Path, tmp_path: Path) -> None:
    on_residual_weights(base, tmp_path)
    assert inspect(str(tmp_path))["on_residual_weights"] is True


def test_unfinished_and_empty_folders_say_what_they_are(base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "config.yaml").write_text("recipe: classification")
    request = tmp_path / "merged" / ".ailora" / "request.json"
    request.parent.mkdir(parents=True)
    request.write_text("{}")
    (tmp_path / "merged" / "config.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    for name, message in (
        ("my run", r"is a run that has not finished: `ailora train '.*/my run/config\.yaml'` continues it"),
        ("merged", "is not finished: repeat the command that began it"),
        ("notes", "holds no adapter .*, run .* or model"),
    ):
        with pytest.raises(ailora.InputError, match=message):
            inspect(str(tmp_path / name))


def test_scores_of_a_run_that_are_no_numbers(adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "adapter")
    (tmp_path / "config.yaml").touch()
    write_json(tmp_path / "result.json", {"metrics": {"perplexity": math.inf}})
    assert inspect(str(tmp_path))["metrics"] == {"perplexity": math.inf}
