"""What a study costs beside its runs: adding a trial, and taking and ending one, for growing numbers of trials.

    python benchmarks/bench_study.py [--trials 100 300 1000] [--workers 2]

The runs do nothing, so that all of the time is the study's own. Workers are processes on one SQLite file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import write_results

from ailora.studies.study import create_or_load_study
from ailora.studies.study_config import load_study_config

ROOT = Path(__file__).resolve().parents[1]
TABLE = "text\tlabel\ngood\t1\nbad\t0\n"


def study_of(folder: Path, trials: int) -> dict[str, Any]:
    """A study file of one method and as many seeds as trials."""
    for split in ("train", "validation"):
        (folder / f"{split}.tsv").write_text(TABLE)
    data = {"train": f"{folder}/train.tsv", "validation": f"{folder}/validation.tsv", "text": ["text"]}
    return {
        "base": {"recipe": "classification", "model": "builtin:minilm", "data": data, "metric": "accuracy"},
        "methods": ["lora"],
        "learning_rate": {"values": [3e-3]},
        "seeds": list(range(trials)),
        "seeds_at": "all",
        "output": str(folder / "study"),
    }


def measure(trials: int, workers: int) -> dict[str, Any]:
    """Milliseconds a trial: to add, and to run, in the first and the last tenth too."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begun = time.perf_counter()
        storage, _ = create_or_load_study(load_study_config(study_of(folder, trials)))
        added = time.perf_counter() - begun
        runs = folder / "runs"
        command = [sys.executable, "-m", "tests.studies.worker_process", storage.url, storage.name, str(runs)]
        processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(workers)]
        times = []
        while any(process.poll() is None for process in processes):
            time.sleep(0.05)
            count = runs.read_text().count("end ") if runs.exists() else 0
            if count > len(times):
                times += [time.perf_counter()] * (count - len(times))
        storage.close()
        assert len(times) == trials
    tenth = max(2, trials // 10)
    return {
        "trials": trials,
        "workers": workers,
        "add_ms": round(1000 * added / trials, 1),
        "run_ms": round(1000 * (times[-1] - times[0]) / (trials - 1), 1),
        "first_tenth_ms": round(1000 * (times[tenth - 1] - times[0]) / (tenth - 1), 1),
        "last_tenth_ms": round(1000 * (times[-1] - times[-tenth]) / (tenth - 1), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    rows = []
    for workers in arguments.workers:
        for trials in arguments.trials:
            rows.append(measure(trials, workers))
            print(rows[-1], flush=True)
    print(write_results("study", {"rows": rows}))


if __name__ == "__main__":
    main()
