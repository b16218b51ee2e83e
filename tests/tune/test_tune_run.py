"""A search ends with an ordinary finished run: the run of the chosen settings, bit for bit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from ailora import InputError
from ailora.recipes import registry
from ailora.recipes.config.loader import load_config
from ailora.recipes.run_folder import RunFolder
from ailora.studies.trial import Status
from ailora.tune import tune_run
from ailora.tune.tune_design import TuneDesign
from ailora.tune.tune_result import TuneResult
from ailora.tune.tune_run import load_search, open_search, run_search, validate_machine_for_search

#: Entries of `result.json` that two runs of the same settings do not share.
_OWN = ("init_seconds", "train_seconds", "peak_memory_bytes", "config")


def tune(config: dict[str, Any]) -> TuneResult:
    storage, design = open_search(load_config(config))
    try:
        return run_search(storage, design, workers=1, on_poll=lambda _: None)
    finally:
        storage.close()


def read_outcome(output: Path) -> tuple[dict[str, Any], dict[str, bytes], str, str]:
    """Result, weights, log and search of a folder, without times and the folder's own name."""
    result = json.loads((output / "result.json").read_text())
    # Not the bytes of the file: safetensors writes the entries of its metadata in the order of each process.
    tensors = load_file(output / "adapter" / "adapter_model.safetensors")
    weights = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    kept = {key: value for key, value in result.items() if key not in _OWN}
    search = output / "tune.json"
    return kept, weights, (output / "log.jsonl").read_text(), search.read_text() if search.exists() else ""


@pytest.mark.ci
def test_the_result_is_the_run_of_the_chosen_settings(
    tuned: dict[str, Any], in_process: list[str], tmp_path: Path
) -> None:
    result = tune(tuned)
    output = Path(tuned["output"])
    assert len(in_process) == len(set(in_process)) == sum(count for _, count in result.rungs)
    chosen = RunFolder(output).read_config()
    assert chosen.training["learning_rate"] == result.winner.learning_rate
    assert chosen.adapter.policy == result.winner.policy
    plain = chosen.model_copy(update={"output": str(tmp_path / "plain")})
    registry.run(plain)
    assert read_outcome(output)[:3] == read_outcome(Path(plain.output))[:3]
    # The same command says the same again, and trains nothing.
    trained = list(in_process)
    written = (output / "tune.json").read_text()
    assert tune(tuned) == result
    assert in_process == trained
    assert (output / "tune.json").read_text() == written
    assert json.loads(written) == result.to_dict()
    # A finished run of its own: `ailora train` of its configuration has nothing to do.
    assert registry.run(load_config(output / "config.yaml"))["seed"] == 0
    # Trials leave their configurations and logs, and no checkpoint.
    assert not [*(output / ".tune").rglob("checkpoint-*")]


@pytest.mark.ci
def test_what_is_said_about_the_choice_follows_from_its_numbers(tuned: dict[str, Any], in_process: list[str]) -> None:
    result = tune(tuned)
    values = [c.values[result.total_steps] for c in result.candidates if result.total_steps in c.values]
    assert result.winner.values[result.total_steps] == min(values)
    assert result.cost_runs <= 3
    assert result.sentences[0].startswith(f"Best: {result.winner.policy} at ")
    assert any("one seed" in sentence for sentence in result.sentences)
    assert any("share of the differences in loss at step 3" in sentence for sentence in result.sentences)
    dropped = [candidate.dropped_at for candidate in result.candidates]
    assert dropped.count(None) == 1


@pytest.mark.ci
def test_a_budget_in_time_becomes_runs_by_the_first_trial(
    tuned: dict[str, Any], in_process: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if a step took 2 s: the search trains for as long as the budget says otherwise.
    monkeypatch.setattr(tune_run, "read_train_seconds", lambda checkpoint: 2.0 * int(checkpoint.name.split("-")[1]))
    tuned["tune"]["budget"] = "120s"
    result = tune(tuned)
    assert 1 < result.cost_runs <= 120 / (2 * result.total_steps) + 1e-9
    assert len(set(in_process)) == len(in_process)
    assert result.winner.values.keys() == {step for step, _ in result.rungs}


@pytest.mark.ci
def test_a_time_below_one_run_is_refused_after_the_first_trial(tuned: dict[str, Any], in_process: list[str]) -> None:
    tuned["tune"]["budget"] = "0.01s"
    with pytest.raises(InputError, match=r"tune\.budget 0\.01s: the budget is .* of a run"):
        tune(tuned)
    assert len(in_process) == 1


def test_another_search_or_run_in_the_folder_is_refused(tuned: dict[str, Any]) -> None:
    storage, _ = open_search(load_config(tuned))
    storage.close()
    with pytest.raises(InputError, match=r"a different search \(tune\.budget: '3x' there, '4x' now\)"):
        open_search(load_config(tuned | {"tune": tuned["tune"] | {"budget": "4x"}}))
    output = Path(tuned["output"])
    shutil.rmtree(output)
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        open_search(load_config(tuned))
    (output / "config.yaml").write_text("recipe: classification")
    with pytest.raises(InputError, match="holds a run that `ailora tune` did not make"):
        open_search(load_config(tuned))
    assert sorted(path.name for path in output.iterdir()) == ["config.yaml", "notes.txt"]


def test_a_budget_in_time_may_be_raised_before_the_search_is_planned(tuned: dict[str, Any]) -> None:
    """As the message on a time below one run advises."""

    def open_with(budget: str) -> TuneDesign:
        storage, design = open_search(load_config(tuned | {"tune": tuned["tune"] | {"budget": budget}}))
        storage.close()
        return design

    open_with("1s")
    assert open_with("2h").space.run.tune.budget == "2h"
    with pytest.raises(InputError, match="a different search"):
        open_with("4x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"eval_strategy": "no"}}, "compares runs by their evaluations during training"),
        ({"tune": {"rank": [64]}}, "tune: lora, query and value, rank 64: rank must be"),
        ({"tune": {"roles": [["query", "gate"]]}}, "tune: lora, query and gate, rank 4: .*gate"),
        ({"data": {"validation": "missing.tsv"}}, r"missing\.tsv"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_written(
    tuned: dict[str, Any], change: dict[str, dict[str, Any]], message: str
) -> None:
    if "training" in change:
        del tuned["training"]["eval_steps"]
    for key, values in change.items():
        tuned[key] = tuned[key] | values
    with pytest.raises(InputError, match=message):
        open_search(load_config(tuned))
    assert not Path(tuned["output"]).exists()


def test_without_the_data_no_candidate_fails(tuned: dict[str, Any], tmp_path: Path) -> None:
    tuned["data"]["train"] = shutil.copy(tuned["data"]["train"], tmp_path)
    config = load_config(tuned)
    storage, _ = open_search(config)
    Path(tuned["data"]["train"]).unlink()
    search = load_search(storage.url, storage.name)
    with pytest.raises(InputError, match=re.escape(tuned["data"]["train"])):
        validate_machine_for_search(*search)
    with pytest.raises(InputError, match=re.escape(tuned["data"]["train"])):
        open_search(config)
    assert {trial.status for trial in storage.trials()} <= {Status.WAITING}
    for opened in (storage, search[0]):
        opened.close()


def test_a_search_by_earlier_rules_is_refused(tuned: dict[str, Any]) -> None:
    """Its rungs end elsewhere, and its dropped candidates would train again."""
    storage, _ = open_search(load_config(tuned))
    storage.update_config({key: value for key, value in storage.config.items() if key != "rules"})
    with pytest.raises(InputError, match=r"other rules for its rungs \(version 1, now 2\): finish it with the version"):
        open_search(load_config(tuned))
