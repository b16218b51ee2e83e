"""Adapted models under DDP, FSDP2 and tensor parallelism, in two processes: what they train is what one trains."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import ailora
from tests.engines.checks import CHECKS
from tests.engines.launch import launch
from tests.engines.training import SAVED_AT, STEPS, Job, base, examples, train

# The processes that are started are free to warn; here the Trainer of the reference runs.
pytestmark = pytest.mark.filterwarnings("ignore")

FULL = {"engine": "fsdp", "fsdp": {"state_dict_type": "FULL_STATE_DICT"}}
SHARDED = {
    "engine": "fsdp",
    "fsdp": {"state_dict_type": "SHARDED_STATE_DICT", "cpu_ram_efficient_loading": True},
}
DDP = {"engine": "ddp"}


def factors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter's file."""
    return load_file(folder / "adapter_model.safetensors")


def distance(folder: Path, other: Path) -> float:
    """The largest relative difference of two files' factors."""
    these, those = factors(folder), factors(other)
    assert these.keys() == those.keys()
    assert these
    return max(float((tensor - those[name]).norm() / those[name].norm()) for name, tensor in these.items())


def logits(folder: Path) -> torch.Tensor:
    """What a file computes on the base, in stock PEFT."""
    ids = torch.stack([example["input_ids"] for example in examples()[:4]])
    with torch.no_grad():
        return PeftModel.from_pretrained(base(), folder).eval()(input_ids=ids).logits


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that one process trains."""
    out = tmp_path_factory.mktemp("alone")
    train(Job(out=str(out)))
    return out / "adapter"


def run(log: Path, *jobs: dict[str, Any]) -> int:
    return launch("tests.engines.training", json.dumps(jobs), log=log)


def kill(log: Path, job: dict[str, Any]) -> None:
    """Train until both processes are killed, after the first checkpoint."""
    assert run(log, {**job, "killed": True}) != 0
    assert "SIGKILL" in log.read_text()
    assert [path.name for path in Path(job["out"]).iterdir()] == [f"checkpoint-{SAVED_AT}"]


def validate_trained(out: Path, alone: Path) -> None:
    """A resumed run went on from its checkpoint, and ended where one process ends."""
    steps = [entry["step"] for entry in json.loads((out / "log0.json").read_text()) if "loss" in entry]
    assert steps == [10, 20, 30, 40, STEPS]
    assert distance(out / "adapter", alone) <= 1e-4
    expected = logits(alone)
    assert math.isfinite(expected.sum())
    assert (logits(out / "adapter") - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run under FSDP2 that was killed and resumed, and of the checks; one launch for the latter two."""
    folder = tmp_path_factory.mktemp("launched")
    job = {"out": str(folder / "out"), **FULL}
    kill(folder / "killed.txt", job)
    wanted = {"folder": str(folder), "jobs": [{**job, "resumed": True}]}
    code = launch("tests.engines.checks", json.dumps(wanted), log=folder / "log.txt")
    (folder / "code.txt").write_text(str(code))
    return folder


@pytest.mark.ci
@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_two_processes_find_that(check: str, launched: Path) -> None:
    log = (launched / "log.txt").read_text()
    assert f"passed: {check}\n" in log, log[-3000:]


@pytest.mark.ci
def test_a_killed_and_resumed_run_under_fsdp_trains_what_one_process_trains(launched: Path, alone: Path) -> None:
    assert (launched / "code.txt").read_text() == "0", (launched / "log.txt").read_text()[-3000:]
    validate_trained(launched / "out", alone)
    assert distance(launched / "out" / f"checkpoint-{STEPS}", launched / "out" / "adapter") == 0


@pytest.mark.slow
@pytest.mark.parametrize("engine", [pytest.param(SHARDED, id="fsdp2, sharded states"), pytest.param(DDP, id="ddp")])
def test_other_killed_and_resumed_runs_train_what_one_process_trains(
    engine: dict[str, Any], alone: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log.txt"
    job = {"out": str(out), **engine}
    kill(log, job)
    assert run(log, {**job, "resumed": True}) == 0, log.read_text()[-3000:]
    validate_trained(out, alone)
    file = out / f"checkpoint-{STEPS}" / "adapter_model.safetensors"
    # With sharded states the Trainer writes shards only, and no file of the adapter.
    assert file.exists() == (engine is DDP)


@pytest.mark.slow
def test_other_settings_train_what_one_process_trains(alone: Path, tmp_path: Path) -> None:
    sft = {"trainer": "SFTTrainer", "training": {"bf16": False, "max_grad_norm": 0.5}}
    train(Job(out=str(tmp_path / "sft alone"), **sft))
    small = {"gradient_checkpointing": True, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}
    jobs = [
        {"out": str(tmp_path / "sft"), **FULL, **sft},
        {"out": str(tmp_path / "small"), **FULL, "training": small},
    ]
    log = tmp_path / "log.txt"
    assert run(log, *jobs) == 0, log.read_text()[-3000:]
    assert distance(tmp_path / "sft" / "adapter", tmp_path / "sft alone" / "adapter") <= 1e-4
    assert distance(tmp_path / "small" / "adapter", alone) <= 1e-4


def test_partitions_of_zero_3_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = base()
    layer = model.model.layers[1].self_attn.v_proj
    layer.weight.ds_id = 7
    with pytest.raises(ailora.ModelError, match=r"layers\.1\.self_attn\.v_proj: .* ZeRO-3 .*ailora init"):
        ailora.adapt(model, rank=4)
    assert model.model.layers[1].self_attn.v_proj is layer
    monkeypatch.setattr("ailora.lora.parallelism_support.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ailora.ModelError, match=r"ZeRO-3 .*form='stock'"):
        ailora.adapt(base(), rank=4)
    ailora.adapt(base(), rank=4, form="stock")


def test_an_adapter_that_zero_3_partitions_later_is_refused_at_the_first_step() -> None:
    model = ailora.adapt(base(), rank=4)
    delta = model.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].delta
    delta.ds_id = 7
    with pytest.raises(ailora.ModelError, match=r"a factor \(4, 32\) of the adapter was partitioned"):
        model(input_ids=torch.tensor([[5, 6]]))
