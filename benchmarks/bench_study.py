"""Measure the overhead of a study: adding a trial, starting and ending a trial, and `ailora study status`.

    python benchmarks/bench_study.py [--trials 100 300 1000] [--workers 2] [--status 1000 10000]

The runs do nothing, so all time is overhead. Workers are processes that share a SQLite file.
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
from optuna.trial import TrialState, create_trial

from ailora.recipes.config.yaml_file import format_yaml
from ailora.studies.study import create_or_load_study
from ailora.studies.study_config import load_study_config
from ailora.studies.study_design import StudyDesign
from ailora.studies.trial_storage import TrialStorage

ROOT = Path(__file__).resolve().parents[1]
TABLE = "text\tlabel\ngood\t1\nbad\t0\n"


def study_of(folder: Path, trials: int) -> dict[str, Any]:
    """Return the content of a study file with a single method and a seed for each trial."""
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
    """Return the milliseconds for adding and for running a trial: over all trials, the first and the last tenth."""
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


def measure_status(trials: int) -> dict[str, Any]:
    """Return the seconds of the command `ailora study status` for a study whose trials have ended."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "study.yaml"
        file.write_text(format_yaml(study_of(folder, trials)))
        config = load_study_config(file)
        assert config.storage is not None
        assert config.name is not None
        Path(config.output).mkdir()
        storage = TrialStorage.create(config.storage, config.name, config.model_dump(by_alias=True))
        design = StudyDesign(config)
        result = {"metrics": {"validation": {"accuracy": 0.5, "loss": 0.7}}, "history": [], "seconds": 9.0}
        storage._study.add_trials(
            create_trial(
                state=TrialState.COMPLETE,
                value=0.5,
                user_attrs={"key": design.keys.key(spec), "cell": spec.to_dict(), "outcome": result},
            )
            for spec in design.required_trials([])
        )
        storage.close()
        create_or_load_study(config)[0].close()
        command = [sys.executable, "-m", "ailora", "study", "status", str(file)]
        seconds = []
        for _ in range(3):
            begun = time.perf_counter()
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds.append(time.perf_counter() - begun)
            assert str(trials) in run.stdout
    return {"trials": trials, "status_s": round(min(seconds), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--status", type=int, nargs="+", default=[1000, 10000])
    arguments = parser.parse_args()
    rows = []
    for workers in arguments.workers:
        for trials in arguments.trials:
            rows.append(measure(trials, workers))
            print(rows[-1], flush=True)
    statuses = []
    for trials in arguments.status:
        statuses.append(measure_status(trials))
        print(statuses[-1], flush=True)
    print(write_results("study", {"rows": rows, "status": statuses}))


if __name__ == "__main__":
    main()
