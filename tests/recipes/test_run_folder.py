"""Folders of runs that failed, or that were damaged after they were written."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import load_file
from transformers import Trainer

import ailora
from ailora.checkpoints.folder_lock import STATE_DIR_NAME
from ailora.recipes import registry
from ailora.recipes.classification import ClassificationRecipe
from ailora.recipes.config.loader import load_config
from ailora.recipes.config.method import FullFineTuning
from ailora.recipes.registry import load_run
from ailora.recipes.run_folder import RunFolder
from tests.tiers import in_tiers

#: Eight steps, checkpoints after five and eight.
SMALL = ("data.max_train_samples=32",)


def run(config: dict[str, Any], *overrides: str) -> dict[str, Any]:
    return registry.run(load_config(config, [*SMALL, *overrides]))


def fail_at_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    real, calls = Trainer.training_step, []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == step:
            raise RuntimeError("out of memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", failing)


def test_an_error_before_the_first_checkpoint_leaves_the_folder_to_the_next_attempt(
    config: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fail_at_step(patch, 3)
        with pytest.raises(RuntimeError, match="out of memory"):
            run(config)
    failed = (tmp_path / "run" / "failed.txt").read_text()
    assert failed == "ended before the first checkpoint: RuntimeError: out of memory\n"
    result = run(config, "adapter={policy: full}")
    assert result["config"]["adapter"] == {"policy": "full"}
    assert RunFolder(config["output"]).read_config().adapter.method == FullFineTuning()
    assert not {"failed.txt", "ailora.json", "adapter"} & {path.name for path in (tmp_path / "run").iterdir()}


def test_an_error_with_a_path_that_is_not_utf8_is_recorded(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no room"), RunFolder(tmp_path / "run").claimed(load_config(config)):
        raise RuntimeError("no room in d\udcff")
    assert (tmp_path / "run" / "failed.txt").read_text().endswith("RuntimeError: no room in d\\udcff\n")


def test_an_error_after_a_checkpoint_keeps_the_folder(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fail_at_step(patch, 7)
        with pytest.raises(RuntimeError, match="out of memory"):
            run(config)
    assert not (tmp_path / "run" / "failed.txt").exists()
    with pytest.raises(ailora.InputError, match=r"holds another run \(training\.learning_rate"):
        run(config, "training.learning_rate=1e-4")
    assert run(config)["steps"] == 8


def test_what_fails_while_it_is_measured_leaves_the_trained_adapter(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassificationRecipe, "evaluate", lambda *_: (_ for _ in ()).throw(RuntimeError("dtypes differ")))
        with pytest.raises(RuntimeError, match="dtypes differ") as error:
            run(config)
    adapter = tmp_path / "run" / "adapter"
    trained = (adapter / "adapter_model.safetensors").read_bytes()
    assert str(adapter) in error.value.__notes__[0]
    assert run(config)["steps"] == 8
    assert (adapter / "adapter_model.safetensors").read_bytes() == trained
    assert "accuracy" in (adapter / "README.md").read_text()


@pytest.mark.parametrize(
    "option", in_tiers(["load_best_model_at_end", "eval_on_start"], fast=["load_best_model_at_end"])
)
def test_options_of_the_end_and_the_start_hold_after_a_kill(
    config: dict[str, Any], tmp_path: Path, option: str
) -> None:
    # The rate makes the first checkpoint the better one.
    overrides = (f"training.{option}=true", "training.learning_rate=0.3", "training.metric_for_best_model=loss")
    expected = run(config | {"output": str(tmp_path / "whole")}, *overrides)
    with pytest.MonkeyPatch.context() as patch:
        fail_at_step(patch, 7)
        with pytest.raises(RuntimeError, match="out of memory"):
            run(config, *overrides)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "write_result", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            run(config, *overrides)
    result = run(config, *overrides)
    assert result["metrics"] == expected["metrics"]
    assert result["history"] == expected["history"]
    files = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "run")]
    assert files[0].read_bytes() == files[1].read_bytes()


#: Trains a configuration, and waits at the first step until a file is there.
_WAITING = """
import sys, time
from pathlib import Path
from transformers import Trainer
from ailora.recipes import registry, run_folder
from ailora.recipes.config.loader import load_config

run_folder._LOCK_TIMEOUT_S = 0.5
config, told, go = sys.argv[1:]
real = Trainer.training_step

def training_step(*args, **kwargs):
    Path(told).touch()
    while not Path(go).exists():
        time.sleep(0.05)
    return real(*args, **kwargs)

Trainer.training_step = training_step
registry.run(load_config(config))
"""


@pytest.mark.ci
def test_two_processes_do_not_train_in_one_folder(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(config | {"data": config["data"] | {"max_train_samples": 32}}))
    told, go = tmp_path / "told", tmp_path / "go"
    command = [sys.executable, "-c", _WAITING, str(tmp_path / "run.json"), str(told), str(go)]
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        while not told.exists():
            assert first.poll() is None
            time.sleep(0.05)
        second = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=300)
        assert second.returncode == 1
        assert f"another process is writing to {tmp_path / 'run'}".encode() in second.stderr
        go.touch()
        assert first.wait(300) == 0
    finally:
        first.kill()
        first.wait()
    assert RunFolder(tmp_path / "run").read_result()["steps"] == 8
    assert not (tmp_path / "run" / "failed.txt").exists()


def test_a_file_of_the_users_named_failed_is_no_run(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "failed.txt").write_text("mine")
    with pytest.raises(ailora.InputError, match="is not empty and holds no run"):
        run(config)
    assert (tmp_path / "run" / "failed.txt").read_text() == "mine"


def claim(config: dict[str, Any], *overrides: str) -> RunFolder:
    """Claim a run's folder, and let go of it."""
    loaded = load_config(config, [*SMALL, *overrides])
    folder = RunFolder(loaded.output)
    with folder.claimed(loaded):
        pass
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and ".ailora" not in file.parts)
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize("marked", ["", '{"train_seconds": 1}'])
def test_checkpoints_behind_a_link_are_left_alone(config: dict[str, Any], tmp_path: Path, marked: str) -> None:
    theirs = tmp_path / "theirs" / "checkpoint-500"
    theirs.mkdir(parents=True)
    (theirs / "model.safetensors").write_text("theirs")
    if marked:
        (theirs / "complete.json").write_text(marked)
    folder = claim(config)
    folder.checkpoints.symlink_to(tmp_path / "theirs")
    with pytest.raises(ailora.InputError, match="checkpoints is a link, and nothing is written through links"):
        run(config)
    folder.checkpoints.unlink()
    folder.checkpoints.mkdir()
    (folder.checkpoints / "checkpoint-500").symlink_to(theirs)
    with pytest.raises(ailora.InputError, match=r"checkpoint-500 is a link|checkpoints was not written by this"):
        run(config)
    assert (theirs / "model.safetensors").read_text() == "theirs"


def test_checkpoints_of_another_trainer_are_never_removed(config: dict[str, Any]) -> None:
    folder = claim(config)
    theirs = folder.checkpoints / "checkpoint-5"
    theirs.mkdir(parents=True)
    (theirs / "model.safetensors").write_text("theirs")
    for attempt in (lambda: run(config), lambda: folder.begin_checkpoint(5, rotates=False)):
        with pytest.raises(ailora.InputError, match="checkpoint-5 was not written by this"):
            attempt()
    folder.begin_checkpoint(9, rotates=False)
    with pytest.raises(ailora.InputError, match="checkpoint-5 was not written by this run"):
        folder.begin_checkpoint(10, rotates=True)
    (folder.checkpoints / "checkpoint-9").mkdir()
    assert folder.find_newest_checkpoint() is None
    assert [path.name for path in folder.checkpoints.iterdir()] == ["checkpoint-5"]
    assert (theirs / "model.safetensors").read_text() == "theirs"


@pytest.mark.parametrize(
    "name",
    ["adapter", "model", "log.jsonl", "predictions.parquet", "samples.jsonl", "ailora.json", ".initial", "failed.txt"],
)
@pytest.mark.parametrize("kind", ["link", "dangling", "foreign"])
def test_what_lies_in_the_place_of_an_output_is_refused_before_training(
    config: dict[str, Any], tmp_path: Path, name: str, kind: str
) -> None:
    folder = claim(config)
    place = folder.path / name
    target = {"link": tmp_path / "theirs", "dangling": tmp_path / "none", "foreign": place}[kind]
    if kind != "dangling":
        target.mkdir()
        (target / "notes.txt").write_text("theirs")
    if kind != "foreign":
        place.symlink_to(target)
    before = contents(tmp_path)
    with pytest.raises(ailora.InputError, match=rf"{name} (was not written by this command|is a link)"):
        claim(config)
    assert contents(tmp_path) == before
    assert place.is_symlink() == (kind != "foreign")


def test_a_configuration_of_the_users_is_not_replaced(config: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "failed.txt"):
        (folder / name).write_text("mine: 1\n")
    before = contents(folder)
    with pytest.raises(ailora.InputError, match=r"config\.yaml"):
        run(config)
    assert contents(folder) == before
    (folder / "config.yaml").unlink()
    (folder / "config.yaml").symlink_to(tmp_path / "nowhere.yaml")
    (folder / "failed.txt").unlink()
    with pytest.raises(ailora.InputError, match="holds no run"):
        run(config)
    assert not (tmp_path / "nowhere.yaml").exists()


@contextlib.contextmanager
def full_disk(largest: int) -> Iterator[None]:
    """Let no file of this process become larger, as on a disk without space."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_sentence_and_loses_nothing(config: dict[str, Any], tmp_path: Path) -> None:
    with (
        full_disk(12_000),
        pytest.raises(ailora.InputError, match=rf"cannot continue writing to {tmp_path / 'run'} \("),
    ):
        run(config)
    before = os.umask(0o022)
    try:
        result = run(config)
    finally:
        os.umask(before)
    assert result["steps"] == 8
    closed = [p for p in (tmp_path / "run").rglob("*") if p.stat().st_mode & 0o055 != (0o055 if p.is_dir() else 0o044)]
    assert not closed, "files and folders follow the umask"
    inputs = pd.DataFrame({"sentence": ["a fine film"] * 2000})
    inputs.to_csv(tmp_path / "in.csv", index=False)
    with full_disk(10_000), pytest.raises(ailora.InputError, match=r"cannot write .*out\.csv: File too large"):
        load_run(tmp_path / "run").predict(str(tmp_path / "in.csv"), tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    assert registry.run(load_config(config, SMALL)) == result


@pytest.mark.parametrize("output", ["a\0b", "x" * 5000, "~nobody-of-that-name/run"])
def test_an_output_that_no_folder_can_have_is_refused_early(config: dict[str, Any], output: str) -> None:
    with pytest.raises(ailora.InputError, match="output: expected a path to write to"):
        load_config(config | {"output": output})


def test_a_run_of_a_version_without_a_manifest_is_continued(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fail_at_step(patch, 7)
        with pytest.raises(RuntimeError, match="out of memory"):
            run(config)
    (tmp_path / "run" / ".ailora" / "manifest.json").unlink()
    mark = tmp_path / "run" / "checkpoints" / "checkpoint-5" / "complete.json"
    mark.write_text(json.dumps({"train_seconds": json.loads(mark.read_text())["train_seconds"]}))
    assert run(config)["steps"] == 8


def test_after_a_damaged_checkpoint_the_one_before_gives_the_same_run(config: dict[str, Any], tmp_path: Path) -> None:
    result = run(config)
    folder = tmp_path / "run"
    weights = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    (folder / "result.json").unlink()
    last = folder / "checkpoints" / "checkpoint-8"
    (last / "optimizer.pt").write_bytes(b"")
    with pytest.raises(ailora.InputError, match=r"optimizer\.pt is damaged .* resume from checkpoint-5"):
        run(config)
    shutil.rmtree(last)
    assert run(config)["metrics"] == result["metrics"]
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_result_is_written_anew_when_it_is_deleted(
    config: dict[str, Any], tmp_path: Path, content: str
) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.claimed(load_config(config)):
        pass
    folder.result.write_text(content)
    with pytest.raises(ailora.InputError, match=r"result\.json is damaged .*: delete \S+ and run `ailora train \S+`"):
        load_run(folder.path)
    with pytest.raises(ailora.InputError, match=r"result\.json is damaged"):
        registry.run(load_config(config))


@pytest.mark.parametrize("labels", [5, [], ["a"], [["a"], {}]])
def test_damaged_labels_of_a_finished_run_are_named(config: dict[str, Any], tmp_path: Path, labels: object) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.claimed(load_config(config)):
        pass
    folder.result.write_text(json.dumps({"metrics": {}, "best": {}, "labels": labels}))
    with pytest.raises(ailora.InputError, match=r"result\.json is damaged \(labels must be .*: delete"):
        load_run(folder.path)


@pytest.mark.parametrize("policy", ["lora", "full"])
def test_missing_files_of_a_finished_run_are_named(config: dict[str, Any], tmp_path: Path, policy: str) -> None:
    result = run(config, f"adapter={{policy: {policy}}}")
    made = tmp_path / "run" / ("model" if policy == "full" else "adapter")
    prefix = "" if policy == "full" else "adapter_"
    for name in (f"{prefix}model.safetensors", f"{prefix}config.json"):
        (made / name).rename(tmp_path / name)
        with pytest.raises(ailora.InputError, match=rf"{made} has no {name}: delete \S+result\.json and run"):
            load_run(tmp_path / "run").evaluate()
        (tmp_path / name).rename(made / name)
    weights = made / f"{prefix}model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ailora.InputError, match=r"cannot load"):
        load_run(tmp_path / "run").evaluate()
    # The way out that the message names.
    (tmp_path / "run" / "result.json").unlink()
    assert run(config, f"adapter={{policy: {policy}}}")["metrics"] == result["metrics"]
    assert load_file(weights)


def test_predictions_replace_nothing_that_is_read_and_other_files_by_force(
    config: dict[str, Any], tmp_path: Path
) -> None:
    folder = claim(config)
    folder.result.write_text(json.dumps({"metrics": {}, "best": {}, "labels": ["a", "b"]}))
    file, link, notes = tmp_path / "in.csv", tmp_path / "link.csv", tmp_path / "notes.csv"
    pd.DataFrame({"sentence": ["x"]}).to_csv(file, index=False)
    link.symlink_to(file)
    notes.write_text("mine")
    (tmp_path / "out.csv").mkdir()
    before = contents(tmp_path)
    for output, force, message in (
        (file, True, "is an input"),
        (tmp_path / "run" / ".." / "in.csv", True, "is an input"),
        (link, True, "is a link"),
        (folder.result, True, "belongs to .*run, which is an input"),
        (notes, False, "has no mark of ailora"),
        (tmp_path / "out.csv", True, "is a folder"),
    ):
        with pytest.raises(ailora.InputError, match=message):
            load_run(folder.path).predict(str(file), output, force=force)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.max_length=2"],
            "data.max_length must be at least 3, got 2: the tokenizer adds 2 special tokens, and no room",
        ),
        (["training.max_steps=0"], "training.max_steps"),
        (["adapter.rank=true"], "adapter.rank is True"),
    ],
)
def test_bad_values_leave_no_folder(config: dict[str, Any], tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ailora.InputError, match=message):
        run(config, *overrides)
    assert not (tmp_path / "run").exists()


def test_the_shortest_length_trains(config: dict[str, Any]) -> None:
    assert run(config, "data.max_length=3")["steps"] == 8


def test_an_incomplete_checkpoint_of_an_earlier_version_is_refused_before_the_run(config: dict[str, Any]) -> None:
    """Folders of the first versions have no manifest."""
    registry.run(load_config(config))
    folder = RunFolder(config["output"])
    shutil.rmtree(folder.path / STATE_DIR_NAME)
    folder.validate_claimable(load_config(config))
    (folder.checkpoints / "checkpoint-99").mkdir()
    with pytest.raises(ailora.InputError, match=r"checkpoint-99 was not written by this run, or is an incomplete"):
        folder.validate_claimable(load_config(config))
