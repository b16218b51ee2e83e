"""Keys of trials in a storage: read without the packages that train, and only while they still hold."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ailora.recipes.config.yaml_file import format_yaml
from ailora.studies.study import create_or_load_study
from ailora.studies.study_config import load_study_config
from ailora.studies.study_design import StudyDesign
from ailora.studies.study_reader import load_trial_keys
from ailora.studies.trial_keys import TrialKeys
from ailora.studies.worker import work
from tests.studies.sample_trials import make_design
from tests.studies.test_worker import Runs

#: Packages of which none may be needed to look at a study.
HEAVY = {"accelerate", "datasets", "matplotlib", "pandas", "peft", "scipy", "sklearn", "torch", "transformers", "trl"}


@pytest.fixture
def finished(study: dict[str, Any]) -> dict[str, Any]:
    """A study with a grid whose trials have ended."""
    study |= {"grid": {"adapter.alpha": [4, 8]}, "learning_rate": {"values": [1e-3]}, "seeds": [0]}
    storage, design = create_or_load_study(load_study_config(study))
    assert work(storage, design, Runs()) == 4
    storage.close()
    return study


def test_status_imports_no_package_that_trains(finished: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(format_yaml(finished))
    script = (
        "import sys; from ailora.cli import app\n"
        f"app(['study', 'status', {str(file)!r}], standalone_mode=False)\n"
        f"print(sorted({HEAVY!r} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=60)
    assert run.stderr == ""
    assert run.stdout.split("\n")[-2] == "[]"
    assert [line.split()[5] for line in run.stdout.split("\n") if "ailora" in line or "lora " in line] == ["2", "2"]


def test_stored_keys_are_those_of_the_design(finished: dict[str, Any]) -> None:
    config = load_study_config(finished)
    storage, keys = load_trial_keys(config)
    design = StudyDesign(config)
    assert TrialKeys.from_text(storage.trial_keys, config) is not None
    assert keys.conditions == design.conditions
    assert keys.matching_trials(storage.trials()) == design.keys.matching_trials(storage.trials())
    assert len(keys.matching_trials(storage.trials())) == 4


def _chdir(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)


def _home(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("HOME", str(folder))


def _versions(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("ailora.studies.trial_keys.library_versions", lambda: {"peft": "0.0"})


@pytest.mark.parametrize("change", [_chdir, _home, _versions])
def test_stored_keys_hold_for_the_same_folders_and_versions(
    finished: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch, Path], None],
) -> None:
    config = load_study_config(finished)
    storage, _ = load_trial_keys(config)
    text = storage.trial_keys
    change(monkeypatch, tmp_path)
    assert TrialKeys.from_text(text, config) is None
    _, keys = load_trial_keys(config)
    assert keys.conditions == StudyDesign(config).conditions


def test_stored_keys_hold_for_the_same_file(finished: dict[str, Any]) -> None:
    storage, _ = load_trial_keys(load_study_config(finished))
    grown = load_study_config(finished | {"seeds": [0, 1]})
    assert TrialKeys.from_text(storage.trial_keys, grown) is None
    create_or_load_study(grown)
    storage, keys = load_trial_keys(grown)
    assert TrialKeys.from_text(storage.trial_keys, grown) is not None
    assert len(keys.matching_trials(storage.trials())) == 8


def _packed(content: str) -> str:
    return base64.b64encode(zlib.compress(content.encode())).decode()


@pytest.mark.parametrize(
    "text",
    [
        *(None, 3, "", "no base64!", base64.b64encode(b"no zlib").decode(), _packed("no JSON"), _packed("[" * 10_000)),
        *(_packed(json.dumps(content)) for content in (3, [1], ["x", 3], ["x", [["a", "b", 3, {}]]], ["x", [[1]]])),
    ],
)
def test_damaged_keys_are_computed_anew(text: object) -> None:
    assert TrialKeys.from_text(text, make_design().config) is None


def test_keys_that_no_column_holds_are_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    design = make_design()
    assert design.keys.to_text(design.config) is not None
    monkeypatch.setattr("ailora.studies.trial_keys._MAX_STORED_CHARS", 100)
    assert design.keys.to_text(design.config) is None


def test_keys_that_json_would_change_are_not_stored() -> None:
    design = make_design()
    identities = {condition: design.keys.identities[condition] for condition in design.conditions}
    training = {"lr_scheduler_kwargs": {10: "a", 9: "b"}}
    mixed = TrialKeys({c: identity | {"training": training} for c, identity in identities.items()})
    assert mixed.to_text(design.config) is None
