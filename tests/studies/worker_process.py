"""A worker process whose runs cost nothing: `python -m tests.studies.worker_process URL NAME RUNS [SECONDS]`.

Every run appends its key to the file RUNS when it begins and when it ends, and takes SECONDS.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from ailora.recipes.config.schema import RunConfig
from ailora.studies.study import load_study_from_storage
from ailora.studies.trial import TrialResult
from ailora.studies.worker import work


def outcome_of(config: RunConfig) -> TrialResult:
    """Says which rate is good: best at 3e-3, the seed decides the last digits."""
    score = 1 - abs(config.training["learning_rate"] - 3e-3) - config.training["seed"] * 1e-4
    metrics = {"accuracy": score, "f1": score, "loss": 1 - score}
    return TrialResult({"validation": metrics, "test": metrics}, seconds=0.0)


def main() -> None:
    url, name, runs, *rest = sys.argv[1:]
    seconds = float(rest[0]) if rest else 0.0
    log = os.open(runs, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def execute(config: RunConfig, keep: str, should_continue: object) -> TrialResult:
        key = Path(config.output).name
        os.write(log, f"begin {key}\n".encode())
        time.sleep(seconds)
        os.write(log, f"end {key}\n".encode())
        return outcome_of(config)

    work(*load_study_from_storage(url, name), execute)


if __name__ == "__main__":
    main()
