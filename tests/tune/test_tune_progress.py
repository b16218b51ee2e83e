"""The terminal shows the plan of a search, and the best candidate of each rung when it has ended."""

from __future__ import annotations

import pytest

from ailora.cli.tune_progress import TuneProgress
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.training.run_prefix import RunPrefix
from ailora.studies.trial import TrialResult
from ailora.studies.trial_runner import TrialError
from ailora.tune.halving import work_on_search
from tests.tune.conftest import Search


def _train(config: RunConfig, prefix: RunPrefix) -> TrialResult:
    if config.adapter.policy == "ailora" and prefix.step < 24:
        raise TrialError("diverged")
    return TrialResult({"validation": {"loss": config.training["learning_rate"], "accuracy": 0.5}}, seconds=0.0)


def test_each_line_is_printed_once(search: Search, capsys: pytest.CaptureFixture[str]) -> None:
    storage, design = search(budget="2x", learning_rate={"values": [1e-3, 1e-2]}, roles=[["query"]])
    with TuneProgress(storage, design, quiet=False) as progress:
        progress.update(design)
        assert capsys.readouterr().out.splitlines() == [
            "Learning rates of the file.",
            "Plan: 4 candidates to step 3, the best 2 to step 6, the best to step 12, the best to step 24, "
            "at 1.5x the cost of one run.",
        ]
        work_on_search(storage, design, _train)
        progress.update(design)
        progress.update(design)
    assert capsys.readouterr().out.splitlines() == [
        "Step 3: 4 candidates, 2 failed; best lora at 0.001 on query, loss 0.0010.",
        "Step 6: 2 candidates; best lora at 0.001 on query, loss 0.0010.",
        "Step 12: 1 candidate; best lora at 0.001 on query, loss 0.0010.",
        "Step 24: 1 candidate; best lora at 0.001 on query, loss 0.0010.",
    ]


def test_nothing_is_printed_beside_json(search: Search, capsys: pytest.CaptureFixture[str]) -> None:
    storage, design = search()
    with TuneProgress(storage, design, quiet=True) as progress:
        progress.update(design)
    assert capsys.readouterr().out == ""
