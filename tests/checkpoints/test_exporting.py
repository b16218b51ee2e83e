"""`export`: exact, recompressed, in any dtype, and what servers can read."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

import ailora
from ailora.checkpoints import export
from ailora.checkpoints.export_adapter import ExportReport
from tests.checkpoints.conftest import LLAMA, loaded, on_residual_weights, trained
from tests.contracts.test_adapted_model import close

WEIGHTS = "adapter_model.safetensors"


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def updates(folder: Path) -> dict[str, Tensor]:
    """`dW` of every module as stock PEFT would compute it from the files, in float64."""
    config, state = config_of(folder), load_file(folder / WEIGHTS)
    found = {}
    for name in state:
        if name.endswith("lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            A, B = state[name].double(), state[f"{module}.lora_B.weight"].double()
            leaf = module.rpartition(".")[2]
            rank = config["rank_pattern"].get(leaf, config["r"])
            alpha = config["alpha_pattern"].get(leaf, config["lora_alpha"])
            found[module] = alpha / (math.sqrt(rank) if config["use_rslora"] else rank) * B @ A
    return found


def test_an_exact_export_is_the_file(base: Path, adapter: Path, tmp_path: Path) -> None:
    report = export(adapter, tmp_path / "out")
    assert (report.rank, report.error, report.saved_modules) == (8, 0.0, ())
    ours, theirs = load_file(tmp_path / "out" / WEIGHTS), load_file(adapter / WEIGHTS)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name])
    with torch.no_grad():
        expected = PeftModel.from_pretrained(loaded(base), adapter)(**LLAMA.inputs()).logits
        assert torch.equal(PeftModel.from_pretrained(loaded(base), tmp_path / "out")(**LLAMA.inputs()).logits, expected)


@pytest.mark.parametrize("rank", [1, 3, 8, 12])
def test_a_recompressed_export_is_the_best_of_its_rank(rank: int, adapter: Path, tmp_path: Path) -> None:
    """Eckart and Young: what is lost are the singular values behind the rank."""
    report = export(adapter, tmp_path / "out", rank=rank)
    before, after = updates(adapter), updates(tmp_path / "out")
    for name, update in before.items():
        lost, whole = report.errors[name.removeprefix("base_model.model.")]
        values = torch.linalg.svdvals(update)
        # The factors are rounded to float32, which moves each product by about eps of its size.
        rounding = 8 * torch.finfo(torch.float32).eps * float(values[0])
        assert lost == pytest.approx(float(values[rank:].norm()), abs=rounding)
        assert float((update - after[name]).norm()) == pytest.approx(lost, abs=rounding)
        assert whole == pytest.approx(float(values.norm()), rel=1e-5)
    total = math.sqrt(sum(lost**2 for lost, _ in report.errors.values()))
    assert report.error == pytest.approx(total / math.sqrt(sum(whole**2 for _, whole in report.errors.values())))
    assert config_of(tmp_path / "out")["r"] == report.rank == rank


def test_an_energy_gives_the_least_rank_that_keeps_it(adapter: Path, tmp_path: Path) -> None:
    report = export(adapter, tmp_path / "out", energy=0.7)
    spectra = [torch.linalg.svdvals(update).square() for update in updates(adapter).values()]
    shares = [values[: report.rank].sum() / values.sum() for values in spectra]
    assert min(shares) >= 0.7
    assert min(values[: report.rank - 1].sum() / values.sum() for values in spectra) < 0.7
    assert report.rank < 8
    assert export(adapter, tmp_path / "all", energy=1).error < 1e-6


def test_an_export_of_an_export_records_the_error_of_both(adapter: Path, tmp_path: Path) -> None:
    recorded = []
    for source, out, rank in ((adapter, "two", 2), (tmp_path / "two", "one", 1), (tmp_path / "one", "padded", None)):
        export(source, tmp_path / out, rank=rank)
        recorded.append(json.loads((tmp_path / out / "ailora.json").read_text())["exported"]["error"])
    direct = export(adapter, tmp_path / "direct", rank=1).error
    assert recorded[0] < recorded[1] == recorded[2]
    assert recorded[1] == pytest.approx(direct, rel=1e-5)


@pytest.mark.parametrize(("dtype", "eps"), [("bf16", 2**-8), ("fp16", 2**-11)])
def test_half_precision_costs_a_fraction_of_the_update(dtype: str, eps: float, adapter: Path, tmp_path: Path) -> None:
    report = export(adapter, tmp_path / "out", dtype=dtype)
    assert 0 < report.error < 4 * eps
    before, after = updates(adapter), updates(tmp_path / "out")
    lost = math.sqrt(sum(float((before[name] - after[name]).norm()) ** 2 for name in before))
    assert lost / math.sqrt(sum(float(u.norm()) ** 2 for u in before.values())) == pytest.approx(report.error, rel=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"rank": {"query": 4, "value": 2}},
        pytest.param({"rank": {"query": 4, "value": 2}, "alpha": 3}, marks=pytest.mark.ci),
        pytest.param({"rslora": True}, marks=pytest.mark.ci),
        pytest.param({"policy": {"query": "principal", "value": "lora"}}, marks=pytest.mark.ci),
        pytest.param({"alpha": 0.3}, marks=pytest.mark.ci),
    ],
)
def test_servers_find_one_rank_and_one_whole_alpha(base: Path, options: dict[str, Any], tmp_path: Path) -> None:
    trained(base, tmp_path / "adapter", **options)
    report = export(tmp_path / "adapter", tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert (config["rank_pattern"], config["alpha_pattern"], config["use_rslora"]) == ({}, {}, False)
    assert isinstance(config["lora_alpha"], int)
    state = load_file(tmp_path / "out" / WEIGHTS)
    assert {t.shape[0] for name, t in state.items() if "lora_A" in name} == {report.rank} == {config["r"]}
    with torch.no_grad():
        expected = PeftModel.from_pretrained(loaded(base), tmp_path / "adapter")(**LLAMA.inputs()).logits
        close(PeftModel.from_pretrained(loaded(base), tmp_path / "out")(**LLAMA.inputs()).logits, expected)
    assert report.error < 4 * torch.finfo(torch.float32).eps


def test_an_adapter_on_residual_weights_is_saved_for_the_unchanged_base_first(base: Path, tmp_path: Path) -> None:
    model = on_residual_weights(base, tmp_path / "trained")
    with pytest.raises(
        ailora.InputError, match=r"needs residual weights: convert it to an adapter for the unchanged base model first"
    ):
        export(tmp_path / "trained", tmp_path / "out")
    ailora.save_adapter(ailora.resume(loaded(base), tmp_path / "trained"), tmp_path / "saved")
    assert export(tmp_path / "saved", tmp_path / "out").rank == 8
    with torch.no_grad():
        exported = PeftModel.from_pretrained(loaded(base), tmp_path / "out")(**LLAMA.inputs()).logits
        close(exported, model(**LLAMA.inputs()).logits)


def test_a_changed_configuration_is_another_request(adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "adapter")
    (tmp_path / "adapter" / "ailora.json").unlink()
    export(tmp_path / "adapter", tmp_path / "out")
    config = config_of(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 4}, indent=2))
    with pytest.raises(ailora.InputError, match="finished result of a command with different inputs or options"):
        export(tmp_path / "adapter", tmp_path / "out")
    export(tmp_path / "adapter", tmp_path / "out", force=True)
    assert config_of(tmp_path / "out")["lora_alpha"] == 4


@pytest.mark.ci
def test_a_dora_is_exported_exactly_or_not_at_all(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "adapter", dora=True)
    export(tmp_path / "adapter", tmp_path / "out")
    ours, theirs = load_file(tmp_path / "out" / WEIGHTS), load_file(tmp_path / "adapter" / WEIGHTS)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(ailora.InputError, match="a DoRA cannot be exported with a smaller rank"):
        export(tmp_path / "adapter", tmp_path / "small", rank=2)
    trained(base, tmp_path / "mixed", dora=True, rank={"query": 4, "value": 2}, alpha=3)
    export(tmp_path / "mixed", tmp_path / "one")
    with torch.no_grad():
        expected = PeftModel.from_pretrained(loaded(base), tmp_path / "mixed")(**LLAMA.inputs()).logits
        close(PeftModel.from_pretrained(loaded(base), tmp_path / "one")(**LLAMA.inputs()).logits, expected)


def test_heads_travel(tmp_path: Path) -> None:
    from tests.families import FAMILIES

    family = FAMILIES["bert"]
    ailora.save_adapter(ailora.adapt(family.model(), rank=4), tmp_path / "adapter")
    report = export(tmp_path / "adapter", tmp_path / "out", rank=2, dtype="bf16")
    assert report.saved_modules == ("classifier.bias", "classifier.weight")
    name = "base_model.model.classifier.weight"
    assert torch.equal(load_file(tmp_path / "out" / WEIGHTS)[name], load_file(tmp_path / "adapter" / WEIGHTS)[name])


def test_an_export_says_what_it_is(adapter: Path, base: Path, tmp_path: Path) -> None:
    export(adapter, tmp_path / "out", rank=2)
    made = json.loads((tmp_path / "out" / "ailora.json").read_text())
    assert made["exported"]["rank"] == 2
    assert 0 < made["exported"]["error"] < 1
    with pytest.raises(ailora.InputError, match="is an export and does not contain the anchor"):
        ailora.resume(loaded(base), tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be a whole number between 1 and 32, got 0"),
        ({"rank": 33}, "rank must be a whole number between 1 and 32, got 33"),
        ({"energy": 1.5}, r"energy must be a share, .* got 1\.5"),
        ({"rank": 2, "energy": 0.9}, "not both"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
    ],
)
def test_impossible_exports_are_refused(options: dict[str, Any], message: str, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ailora.InputError, match=message):
        export(adapter, tmp_path / "out", **options)
    assert not (tmp_path / "out" / "adapter_config.json").exists()


def test_factors_that_overflow_are_refused(adapter: Path, tmp_path: Path) -> None:
    state = {name: tensor * 1e6 for name, tensor in load_file(adapter / WEIGHTS).items()}
    (tmp_path / "huge").mkdir()
    save_file(state, tmp_path / "huge" / WEIGHTS)
    (tmp_path / "huge" / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    with pytest.raises(ailora.InputError, match=r"not finite in torch\.float16"):
        export(tmp_path / "huge", tmp_path / "out", dtype="fp16")


def test_names_without_the_prefix_are_exported_as_peft_looks_for_them(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    bare = shutil.copytree(adapter, tmp_path / "bare")
    state = load_file(adapter / WEIGHTS)
    save_file({name.removeprefix("base_model.model."): tensor for name, tensor in state.items()}, bare / WEIGHTS)
    export(bare, tmp_path / "out")
    assert load_file(tmp_path / "out" / WEIGHTS).keys() == state.keys()
    with torch.no_grad():
        expected = PeftModel.from_pretrained(loaded(base), adapter)(**LLAMA.inputs()).logits
        assert torch.equal(PeftModel.from_pretrained(loaded(base), tmp_path / "out")(**LLAMA.inputs()).logits, expected)


def test_names_with_and_without_the_prefix_contradict_each_other(adapter: Path, tmp_path: Path) -> None:
    both = shutil.copytree(adapter, tmp_path / "both")
    state = load_file(adapter / WEIGHTS)
    name = next(iter(state))
    save_file({**state, name.removeprefix("base_model.model."): state[name] + 1}, both / WEIGHTS)
    with pytest.raises(ailora.InputError, match="twice, with and without"):
        export(both, tmp_path / "out")


def test_an_adapter_whose_base_is_not_here_is_exported_with_a_warning(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = get_peft_model(loaded(base), LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    config = config_of(tmp_path / "adapter") | {"base_model_name_or_path": "nobody/nothing"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with caplog.at_level("WARNING", logger="ailora"):
        report = export(tmp_path / "adapter", tmp_path / "out")
    assert "not checked whether the file has factors for exactly the modules" in caplog.text
    assert "'nobody/nothing' is neither a folder nor in the hub's cache" in caplog.text
    assert report.to_dict()["completeness_checked"] is False
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    export(tmp_path / "adapter", tmp_path / "nameless")
    assert "adapter_config.json names no base model" in caplog.text


def test_an_adapter_of_ours_needs_no_base_to_be_exported(adapter: Path, tmp_path: Path) -> None:
    assert export(adapter, tmp_path / "out").completeness_checked


@pytest.mark.parametrize(("rank", "allowed"), [(1, 1), (2, 8), (8, 8), (9, 16), (257, 320), (512, 512), (513, None)])
def test_the_rank_that_vllm_takes(rank: int, allowed: int | None) -> None:
    report = ExportReport("out", rank, "float32", {}, 0.0, ())
    assert report.vllm_max_lora_rank == report.to_dict()["vllm_max_lora_rank"] == allowed
