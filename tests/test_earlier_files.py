"""Adapters, runs and studies that were written before the package's files were laid out anew.

`fixtures/before_layout` holds them as the code of then left them; `expected.json` what it said of them. They are used
here as users would: by the command line, by PEFT, and by `ailora.resume`.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import chdir
from importlib.metadata import version
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers as tf
import yaml
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file

import ailora
from tests.cli.test_cli import ailora as ailora_command

FIXTURES = Path(__file__).parent / "fixtures" / "before_layout"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))
#: Stands in files for the folder that holds the fixtures.
PLACEHOLDER = "@ROOT@"
WEIGHTS = "adapter_model.safetensors"
#: Adapters for the base as it is, that an `ailora.json` describes.
ADAPTERS = sorted(name for name, facts in EXPECTED["adapters"].items() if "plan" in facts)
RUNS = sorted(EXPECTED["runs"])
#: What two runs of the same thing do not share.
TIMES = {"seconds", "init_seconds", "train_seconds", "peak_memory_bytes", "attempts", "folder"}

#: Another version of these makes other numbers, so that nothing that was begun before is taken up again.
same_versions = pytest.mark.skipif(
    any(version(name) != then for name, then in EXPECTED["versions"].items()),
    reason=f"what is unfinished goes on with the versions that began it: {EXPECTED['versions']}",
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the fixtures' own, which is the current one, with its base models in the hub's cache."""
    folder = tmp_path / "root"
    relocate(folder)
    for name, value in {"HF_HUB_CACHE": "hub", "HF_DATASETS_CACHE": "datasets", "AILORA_CACHE": "decomposed"}.items():
        monkeypatch.setenv(name, str(folder / "cache" / value))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "cache" / "hub"))
    with chdir(folder):
        yield folder


def relocate(folder: Path) -> None:
    """Copy the fixtures to a folder as if they had been made there."""
    shutil.copytree(FIXTURES, folder)
    for file in folder.rglob("*"):
        if file.suffix in (".yaml", ".json", ".jsonl", ".md"):
            if PLACEHOLDER in (text := file.read_text(encoding="utf-8")):
                file.write_text(text.replace(PLACEHOLDER, str(folder)), encoding="utf-8")
        elif file.suffix == ".db":
            with sqlite3.connect(file) as connection:
                for table in ("study_user_attributes", "trial_user_attributes"):
                    connection.execute(
                        f"update {table} set value_json = replace(value_json, ?, ?)", (PLACEHOLDER, str(folder))
                    )
            connection.close()
    # Finished and unfinished folders name the times of the files that they were made of.
    for name, changed in json.loads((folder / "times.json").read_text(encoding="utf-8")).items():
        os.utime(folder / name, ns=(changed, changed))
    for base in (folder / "bases").iterdir():
        cached = folder / "cache" / "hub" / f"models--before-layout--{base.name}"
        shutil.copytree(base, cached / "snapshots" / EXPECTED["revision"])
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text(EXPECTED["revision"])


def said(*arguments: str) -> str:
    """What a command that succeeds prints."""
    made = ailora_command(*arguments)
    assert made.returncode == 0, made.stderr
    return made.stdout


def told(*arguments: str) -> Any:
    """The JSON that a command prints."""
    return json.loads(said(*arguments).splitlines()[-1])


def close(found: Any, expected: Any, where: str = "") -> None:
    """Equal, numbers but for rounding: another machine adds in another order. Keys may have been added."""
    if isinstance(expected, dict):
        for key in expected:
            close(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, pair in enumerate(zip(found, expected, strict=True)):
            close(*pair, f"{where}[{number}]")
    elif where.endswith(".adapter_bytes") and expected is not None:
        # The header of the file has digests now.
        assert expected <= found < expected + 512, where
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4), where
    else:
        assert found == expected, where


def without_times(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: without_times(value) for key, value in data.items() if key not in TIMES}
    return [without_times(value) for value in data] if isinstance(data, list) else data


def base_model(name: str) -> Any:
    auto = tf.AutoModelForSequenceClassification if name == "bert" else tf.AutoModelForCausalLM
    return auto.from_pretrained(f"before-layout/{name}", **({"num_labels": 3} if name == "bert" else {})).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(EXPECTED["inputs"])).logits.flatten()


def says_as_before(model: Any, name: str) -> None:
    expected = torch.tensor(EXPECTED["adapters"][name]["logits"])
    torch.testing.assert_close(logits(model)[: len(expected)], expected, rtol=1e-3, atol=1e-4)


def same_tensors(one: Path, other: Path) -> None:
    ours, theirs = load_file(one), load_file(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4, msg=name)


def located(data: Any, root: Path) -> Any:
    """What was expected, in the folder that the fixtures are in now."""
    return json.loads(json.dumps(data).replace(PLACEHOLDER, str(root)))


def same_verdict(found: Any, expected: Any) -> None:
    """The same results of the checks that there were; the figures of rounding beside them differ."""
    assert found["passed"] is expected["passed"]
    now, then = ({check["name"]: check["passed"] for check in verdict["checks"]} for verdict in (found, expected))
    assert {name: now[name] for name in then} == then


# Adapters


@pytest.mark.parametrize("name", [*ADAPTERS, "bert-export"])
def test_peft_loads_an_adapter(root: Path, name: str) -> None:
    facts = EXPECTED["adapters"][name]
    folder = root / "adapters" / name
    says_as_before(PeftModel.from_pretrained(base_model(facts["base"]), folder), name)
    for key, shape in facts.get("tensors", {}).items():
        assert list(load_file(folder / WEIGHTS)[key].shape) == shape


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_what_it_was(root: Path, name: str) -> None:
    facts = EXPECTED["adapters"][name]
    close(told("inspect", f"adapters/{name}", "--json"), located(facts["inspected"], root))
    verdict = told("verify", f"adapters/{name}", "--base", f"before-layout/{facts['base']}", "--json")
    same_verdict(verdict, facts["verified"])
    assert verdict["passed"] is True
    other = "gpt2" if facts["base"] != "gpt2" else "llama"
    assert ailora_command("verify", f"adapters/{name}", "--base", f"before-layout/{other}").returncode == 1


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_trains_on(root: Path, name: str) -> None:
    facts = EXPECTED["adapters"][name]
    model = ailora.resume(base_model(facts["base"]), root / "adapters" / name)
    says_as_before(model, name)
    plan = ailora.get_plan(model)
    # Earlier counts left out DoRA's magnitudes.
    before = facts["plan"].replace("trainable numbers", "trainable parameters")
    assert str(plan) == before.replace(f"{facts['trainable']:,} trainable", f"{plan.trainable:,} trainable")
    trainable = plan.trainable - plan.magnitudes
    assert (plan.policy.name, plan.form.value, trainable) == (facts["policy"], facts["form"], facts["trainable"])
    assert {role.value: count for role, count in plan.counts.items()} == facts["counts"]
    model(input_ids=torch.tensor(EXPECTED["inputs"])).logits.square().mean().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if p.requires_grad and "lora_" in n)
    # Saved again, it is the file that it was read from.
    ailora.save_adapter(model, root / "again")
    same_tensors(root / "again" / WEIGHTS, root / "adapters" / name / WEIGHTS)


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_exported_and_merged(root: Path, name: str) -> None:
    base = EXPECTED["adapters"][name]["base"]
    said("export", f"adapters/{name}", "--out", "exported")
    says_as_before(PeftModel.from_pretrained(base_model(base), root / "exported"), name)
    if base != "bert":  # its head is of the adapter, and no part of the base
        said("merge", f"before-layout/{base}", f"adapters/{name}", "--out", "merged")
        says_as_before(tf.AutoModelForCausalLM.from_pretrained(root / "merged"), name)


def test_a_residual_form_that_peft_saved_in_training(root: Path) -> None:
    """It belongs on the residual weights that `init` wrote; on the untouched base its start is computed again."""
    folder, start = root / "adapters" / "residual-training", root / "adapters" / "residual-start"
    name = "residual-training"
    says_as_before(PeftModel.from_pretrained(tf.AutoModelForCausalLM.from_pretrained(start), folder), name)
    says_as_before(ailora.resume(base_model("llama"), folder), name)
    shown = told("inspect", f"adapters/{name}", "--json")
    assert (shown["form"], shown["on_residual_weights"], shown["anchor_inside"]) == ("residual", True, False)
    close(shown, located(EXPECTED["adapters"][name]["inspected"], root))
    for made, verdict in EXPECTED["adapters"][name]["verified"].items():
        checked = ailora_command("verify", f"adapters/{made}", "--base", "before-layout/llama", "--json")
        assert checked.returncode == int(not verdict["passed"])
        same_verdict(json.loads(checked.stdout.splitlines()[-1]), verdict)
    refused = ailora_command("export", str(folder), "--out", "exported")
    assert refused.returncode == 2
    assert "ailora.save_adapter(ailora.resume(base_model, adapter), folder)" in refused.stderr
    ailora.save_adapter(ailora.resume(base_model("llama"), folder), root / "saved")
    says_as_before(PeftModel.from_pretrained(base_model("llama"), root / "saved"), name)


def test_an_export_is_known(root: Path) -> None:
    shown = told("inspect", "adapters/bert-export", "--json")
    assert shown["exported"]["rank"] == shown["max_lora_rank"] == EXPECTED["adapters"]["bert-export"]["rank"]
    with pytest.raises(ailora.InputError, match="is an export"):
        ailora.resume(base_model("bert"), root / "adapters" / "bert-export")


@same_versions
def test_a_finished_export_is_found_finished(root: Path) -> None:
    before = (root / "adapters" / "bert-export" / WEIGHTS).stat().st_mtime_ns
    said(*EXPECTED["adapters"]["bert-export"]["request"])
    assert (root / "adapters" / "bert-export" / WEIGHTS).stat().st_mtime_ns == before


def init(out: str) -> dict[str, Any]:
    return told(*EXPECTED["adapters"]["init"]["request"], "--out", out, "--json")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


@same_versions
def test_a_finished_init_is_found_finished(root: Path) -> None:
    finished = root / "adapters" / "init-finished"
    before, changed = contents(finished), (finished / WEIGHTS).stat().st_mtime_ns
    assert init("adapters/init-finished")["resumed"] == 4
    assert contents(finished) == before
    assert (finished / WEIGHTS).stat().st_mtime_ns == changed


@same_versions
def test_an_unfinished_init_is_completed(root: Path) -> None:
    """Two of its four modules are there; a new seed would be a different request."""
    unfinished = root / "adapters" / "init-unfinished"
    other = ailora_command(*EXPECTED["adapters"]["init"]["request"], "--seed", "6", "--out", str(unfinished))
    assert other.returncode == 2
    assert "unfinished output of a command with different inputs or options (seed: 5 there, 6 now)" in other.stderr
    pieces = {}
    for piece in (unfinished / ".ailora" / "pieces").iterdir():
        with safe_open(piece, "pt") as stream:
            module = stream.metadata()["module"]
            pieces |= {f"base_model.model.{module}.{key}": stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
    assert init("adapters/init-unfinished")["resumed"] == 2
    # What was there is kept bit for bit, and the rest is what a start from nothing makes here.
    init("fresh")
    made, fresh = load_file(unfinished / WEIGHTS), load_file(root / "fresh" / WEIGHTS)
    assert made.keys() == fresh.keys() > pieces.keys()
    for name, tensor in made.items():
        assert torch.equal(tensor, pieces.get(name, fresh[name])), name
    finished = root / "adapters" / "init-finished"
    same_tensors(unfinished / WEIGHTS, finished / WEIGHTS)
    found, expected = contents(unfinished), contents(finished)
    assert found.keys() == expected.keys()
    configs = [json.loads(files["adapter_config.json"]) for files in (found, expected)]
    for config in configs:
        config["target_modules"].sort()  # PEFT keeps a set
    assert configs[0] == configs[1]
    made, then = (json.loads(files["ailora.json"]) for files in (found, expected))
    assert then["plan"].pop("layer_replication") is None
    # What a classifier's file tells since then.
    assert [made.pop(name) for name in ("labels", "pad_token_id")] == [None, None]
    assert made == then
    assert sorted(path.name for path in (unfinished / ".ailora").iterdir()) == ["done.json", "lock"]


def test_init_makes_what_it_made(root: Path) -> None:
    init("made")
    same_tensors(root / "made" / WEIGHTS, root / "adapters" / "init-finished" / WEIGHTS)


# Layer replication


REPLICATED = [f"adapters/refused/{name}" for name in ("replicated", "in-sidecar", "in-config")]


@pytest.mark.parametrize("folder", ["replicated", "in-config"])
def test_an_adapter_of_replicated_layers_has_no_export(root: Path, folder: str) -> None:
    refused = ailora_command("export", f"adapters/refused/{folder}", "--out", "exported")
    assert refused.returncode == 2
    assert "replicat" in refused.stderr


@pytest.mark.parametrize("folder", REPLICATED)
@pytest.mark.parametrize("verb", ["inspect", "verify", "export", "merge"])
def test_an_adapter_of_replicated_layers_is_refused(root: Path, verb: str, folder: str) -> None:
    base = "before-layout/llama"
    arguments = {
        "inspect": [folder],
        "verify": [folder, "--base", base],
        "export": [folder, "--out", "made"],
        "merge": [base, folder, "--out", "made"],
    }[verb]
    refused = ailora_command(verb, *arguments)
    assert refused.returncode == 2
    assert "layer_replication" in refused.stderr
    assert not (root / "made" / WEIGHTS).exists()


@pytest.mark.parametrize("folder", REPLICATED)
def test_an_adapter_of_replicated_layers_does_not_train_on(root: Path, folder: str) -> None:
    with pytest.raises(ailora.AiloraError, match="layer_replication"):
        ailora.resume(base_model("llama"), root / folder)


def test_a_configuration_with_replicated_layers_is_refused(root: Path) -> None:
    override = "adapter.layer_replication=[[0,2],[1,2]]"
    refused = ailora_command("train", "runs/classification/config.yaml", override, "output=made")
    assert refused.returncode == 2
    assert "layer_replication" in refused.stderr


# Runs


@pytest.mark.parametrize("name", RUNS)
def test_a_finished_run_is_found_finished(root: Path, name: str) -> None:
    folder = root / "runs" / name
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.rglob("*") if file.is_file()}
    assert f"written to {folder}" in said("train", f"runs/{name}/config.yaml").replace("\n", "")
    after = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.rglob("*") if file.is_file()}
    assert after == before
    other = ailora_command("train", f"runs/{name}/config.yaml", "training.learning_rate=1e-5")
    assert other.returncode == 2
    assert "holds another run (training.learning_rate: 0.01 there, 1e-05 now)" in other.stderr


@pytest.mark.parametrize("name", RUNS)
def test_a_finished_run_is_used(root: Path, name: str) -> None:
    expected = EXPECTED["runs"][name]
    close(told("evaluate", f"runs/{name}"), expected["evaluate"])
    said("predict", f"runs/{name}", "--input", expected["input"], "--output", "predicted.jsonl")
    rows = [json.loads(line) for line in (root / "predicted.jsonl").read_text(encoding="utf-8").splitlines()]
    close(rows, expected["predictions"])
    shown = told("inspect", f"runs/{name}", "--json")
    assert shown["kind"] == "run"


@pytest.mark.parametrize("name", [name for name in RUNS if name != "full"])
def test_the_result_of_a_run_is_written_anew(root: Path, name: str) -> None:
    """From the last checkpoint and, where the base was overwritten, from the start that lies in `.initial`."""
    folder = root / "runs" / name
    shutil.copytree(folder, root / "before")
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "adapter")
    said("train", f"runs/{name}/config.yaml")
    same_run(folder, root / "before")


def test_an_unfinished_run_goes_on(root: Path) -> None:
    """It was killed in the eighth step of sixteen, after a checkpoint; `classification` ran undisturbed."""
    unfinished = root / "runs" / "unfinished"
    assert not (unfinished / "result.json").exists()
    other = ailora_command("train", "runs/unfinished/config.yaml", "adapter.rank=2")
    assert other.returncode == 2
    assert "holds another run (adapter.rank: 4 there, 2 now)" in other.stderr
    said("train", "runs/unfinished/config.yaml")
    same_run(unfinished, root / "runs" / "classification")


def same_run(folder: Path, other: Path) -> None:
    found, expected = (json.loads((place / "result.json").read_text(encoding="utf-8")) for place in (folder, other))
    for result in (found, expected):
        del result["config"]["output"], result["versions"]
        assert result["config"]["adapter"].pop("layer_replication", None) is None
    close(without_times(found), without_times(expected))
    same_tensors(folder / "adapter" / WEIGHTS, other / "adapter" / WEIGHTS)
    logs = [[json.loads(line) for line in (place / "log.jsonl").read_text().splitlines()] for place in (folder, other)]
    assert len(logs[0]) == len(logs[1])
    close(*logs)


def test_configurations_of_old_runs_say_null_for_replicated_layers(root: Path) -> None:
    config = yaml.safe_load((root / "runs" / "classification" / "config.yaml").read_text(encoding="utf-8"))
    assert config["adapter"]["layer_replication"] is None
    for name in ("classification/ailora.json", "classification/adapter/ailora.json"):
        assert json.loads((root / "runs" / name).read_text())["plan"]["layer_replication"] is None


def test_a_page_of_old_runs_and_studies(root: Path) -> None:
    said("report", *(f"runs/{name}" for name in RUNS), "studies/finished.yaml", "--out", "page.html")
    text = (root / "page.html").read_text(encoding="utf-8")
    assert all(name in text for name in RUNS)


# Studies


def cells(table: str) -> list[list[str]]:
    """The rows of a table on the terminal, whatever lines are drawn between them."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if line.startswith("│")]


def trials(name: str) -> list[tuple[Any, ...]]:
    """What the storage says of every trial: number, state, when it began and ended."""
    with sqlite3.connect(f"studies/{name}/study.db") as connection:
        found = connection.execute(
            "select number, state, datetime_start, datetime_complete from trials order by number"
        )
        rows = found.fetchall()
    connection.close()
    return rows


def rows(name: str) -> list[dict[str, Any]]:
    """What `ailora study export` says of every trial."""
    said("study", "export", f"studies/{name}.yaml", "--out", f"{name}.jsonl")
    lines = Path(f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda row: row["key"])


def judged_as_now(report: Any) -> Any:
    """Put the verdict of today in the place of that of then, and count comparisons that have no seed yet."""
    judged = json.loads(json.dumps(report))
    judged["family"] = sum("against_baseline" in group for group in judged["groups"])
    for group in judged["groups"]:
        if "against_baseline" in group:
            verdict = group["against_baseline"]["verdict"]
            group["against_baseline"]["verdict"] = {"tie": "undecided", None: None}[verdict]
    return judged


@same_versions
@pytest.mark.parametrize("name", ["finished", "unfinished"])
def test_a_study_says_what_it_said(root: Path, name: str) -> None:
    expected = EXPECTED["studies"][name]
    assert cells(said("study", "status", f"studies/{name}.yaml")) == cells(expected["status"])
    close(told("study", "report", f"studies/{name}.yaml", "--json"), judged_as_now(expected["json"]))
    close(rows(name), sorted(located(expected["rows"], root), key=lambda row: row["key"]))


@same_versions
@pytest.mark.slow
def test_a_finished_study_runs_nothing(root: Path) -> None:
    before, report = trials("finished"), said("study", "report", "studies/finished.yaml")
    said("study", "run", "studies/finished.yaml")
    assert trials("finished") == before
    assert said("study", "report", "studies/finished.yaml") == report
    # All tables are as they were then, but for the last two columns of the scores: p and verdict.
    now, then = cells(report), cells(EXPECTED["studies"]["finished"]["report"])
    scores = [row for row in then if len(row) == 9]
    assert len(scores) == 2
    assert all(any(found[:7] == row[:7] for found in now) for row in scores)
    assert all(row in now for row in then if len(row) != 9)


@same_versions
@pytest.mark.slow
def test_an_unfinished_study_goes_on(root: Path) -> None:
    """Three of its eight trials had ended, one was given back, and one lost its worker after a checkpoint."""
    before = [trial for trial in trials("unfinished") if trial[1] == "COMPLETE"]
    assert len(before) == 3
    said("study", "run", "studies/unfinished.yaml")
    after = trials("unfinished")
    assert all(trial in after for trial in before)
    assert sum(trial[1] == "COMPLETE" for trial in after) == 8
    close(without_times(rows("unfinished")), without_times(rows("finished")))
    found = told("study", "report", "studies/unfinished.yaml", "--json")
    close(without_times(found), without_times(judged_as_now(EXPECTED["studies"]["finished"]["json"])))


@same_versions
def test_a_study_of_another_base_does_not_fit_its_storage(root: Path) -> None:
    refused = ailora_command("study", "status", "studies/finished.yaml", "base.adapter.rank=2")
    assert refused.returncode == 2
    assert "no longer fits its storage (base.adapter.rank: 4 there, 2 now)" in refused.stderr
