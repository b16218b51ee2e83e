"""Searches over a tiny BERT, whose trials run in this process or cost nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ailora.recipes.config.loader import load_config
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.training.run_prefix import RunPrefix
from ailora.studies.trial import TrialResult
from ailora.studies.trial_runner import run_trial
from ailora.studies.trial_storage import TrialStorage
from ailora.tune import tune_run
from ailora.tune.halving import work_on_search
from ailora.tune.tune_design import TuneDesign
from ailora.tune.tune_request import TuneRequest
from tests.recipes.conftest import config, tiny_bert, verdicts

__all__ = ["config", "tiny_bert", "verdicts"]

Search = Callable[..., tuple[TrialStorage, TuneDesign]]


@pytest.fixture
def tuned(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of 24 steps, with evaluations after 3, 6, 9, ..., 24 of them."""
    config["training"]["eval_steps"] = 3
    return config | {"tune": {"budget": "3x", "policy": ["lora", "ailora"]}}


@pytest.fixture
def search(tuned: dict[str, Any]) -> Search:
    """Open the search of a configuration; changes of its section `tune` by name."""

    def open_one(**tune: Any) -> tuple[TrialStorage, TuneDesign]:
        return tune_run.open_search(load_config(tuned | {"tune": tuned["tune"] | tune}))

    return open_one


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Train in this process in the place of workers; lists the folder and the last step of each trial."""
    trained: list[str] = []

    def run_workers(storage: TrialStorage, request: TuneRequest, count: int, on_poll: Callable[[], None]) -> None:
        def execute(config: RunConfig, prefix: RunPrefix) -> TrialResult:
            trained.append(f"{config.output} {prefix.step}")
            return run_trial(config, "all", prefix=prefix)

        work_on_search(storage, TuneDesign(request), execute)
        on_poll()

    monkeypatch.setattr(tune_run, "run_workers", run_workers)
    return trained
