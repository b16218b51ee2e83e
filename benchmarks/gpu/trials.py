"""Trials of the paper's small studies, several processes on one GPU: trials per minute, and their results.

Studies run as they would by hand, `ailora study run examples/paper/NAME.yaml --scale small --workers N`, all of them at
once. Every result is recorded when its trial ends; the trials that the time limit interrupts are lost.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from part import PartArguments, Recorder, parse_arguments

ROOT = Path(__file__).resolve().parents[2]
#: Seconds that the studies get to stop, and the rest of the results to be read.
STOP_S = 12.0
POLL_INTERVAL_S = 1.0
#: Many trials share the cores.
TRIAL_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
#: Overrides for a rehearsal: one short trial.
TINY_OVERRIDES = (
    "methods=[ailora]",
    "baseline=ailora",
    "learning_rate={values: [1.0e-3]}",
    "seeds=[0]",
    "extra_seeds=[]",
    "confirm_speed=false",
    "base.data.max_train_samples=16",
    "base.data.max_validation_samples=8",
    "base.data.test=null",
    "base.training.max_steps=2",
)


@dataclass(frozen=True)
class StudyRun:
    """A study that runs.

    Attributes:
        name: File in examples/paper, without its suffix, and the scale.
        output: Folder of its trials.
        process: `ailora study run`.
    """

    name: str
    output: Path
    process: subprocess.Popen[bytes]


@dataclass(frozen=True)
class Study:
    """A study to run.

    Attributes:
        file: In examples/paper, without its suffix.
        scale: Set of keys of the file.
        workers: Number of its trials at a time.
    """

    file: str
    scale: str
    workers: int

    @property
    def name(self) -> str:
        return f"{self.file}-{self.scale}"


def share_cores(share: float) -> int:
    """Return the number of workers for a share of this machine's cores."""
    return max(1, int(share * (os.cpu_count() or 1)))


STUDIES = (
    Study("nlu", "small", share_cores(0.3)),
    Study("e2e", "small", share_cores(0.2)),
    Study("figure5", "small", share_cores(0.2)),
    Study("figure4", "small", share_cores(0.3)),
)
TINY_STUDIES = (Study("nlu", "small", 1),)


def start_study(study: Study, folder: Path, overrides: tuple[str, ...]) -> StudyRun:
    """Start a study in the folder beside which `shared` lies, with its log there."""
    output = folder / study.name
    file = ROOT / "examples" / "paper" / f"{study.file}.yaml"
    command = [sys.executable, "-m", "ailora", "study", "run", str(file), f"output={output}", *overrides]
    with (folder / f"{study.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--scale", study.scale, "--workers", str(study.workers)],
            cwd=folder,
            env=os.environ | TRIAL_ENVIRONMENT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    return StudyRun(study.name, output, process)


def record_new_results(studies: list[StudyRun], recorded: set[Path], recorder: Recorder, started: float) -> None:
    """Record the results of trials that ended since the last call."""
    for study in studies:
        for file in sorted(study.output.glob("trials/*/result.json")):
            if file in recorded:
                continue
            recorded.add(file)
            result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            config = result["config"]
            settings = {
                "policy": config["adapter"]["policy"] if config["adapter"] else "full",
                "rank": config["adapter"]["rank"] if config["adapter"] else None,
                "learning_rate": config["training"]["learning_rate"],
                "seed": config["training"]["seed"],
            }
            elapsed = time.monotonic() - started
            words = ", ".join(f"{key} {value}" for key, value in settings.items())
            recorder.write(
                f"{study.name} {file.parent.name}",
                {"study": study.name, "settings": settings, "elapsed_s": elapsed, "result": result},
                f"trial {len(recorded)} after {elapsed:.0f} s: {study.name}, {words}",
            )


def stop(studies: list[StudyRun]) -> None:
    """Interrupt the studies, as Ctrl-C would, and wait for them for a few seconds."""
    for study in studies:
        if study.process.poll() is None:
            study.process.send_signal(signal.SIGINT)
    until = time.monotonic() + STOP_S / 2
    for study in studies:
        try:
            study.process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            study.process.kill()
            study.process.wait()


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")


def main(arguments: PartArguments) -> None:
    folder = Path(os.environ["AILORA_GPU_FOLDER"]) / "studies"
    folder.mkdir(exist_ok=True)
    if not (folder.parent / "shared").exists():
        arguments.recorder.write("trials", {"skipped": "no data"}, "trials: skipped, no data in the pack or ../shared")
        return
    started = time.monotonic()
    chosen, overrides = (TINY_STUDIES, TINY_OVERRIDES) if arguments.tiny else (STUDIES, ())
    studies = [start_study(study, folder, overrides) for study in chosen]
    recorded: set[Path] = set()
    try:
        while any(study.process.poll() is None for study in studies) and arguments.seconds_left > STOP_S:
            time.sleep(POLL_INTERVAL_S)
            record_new_results(studies, recorded, arguments.recorder, started)
    finally:
        elapsed = time.monotonic() - started
        codes = {study.name: study.process.poll() for study in studies}
        stop(studies)
    record_new_results(studies, recorded, arguments.recorder, started)
    per_minute = 60 * len(recorded) / elapsed
    figures = {
        "trials": len(recorded),
        "seconds": elapsed,
        "trials_per_minute": per_minute,
        "workers": sum(study.workers for study in chosen),
        # None: interrupted by the time limit.
        "exit_codes": codes,
        "last_lines": {study.name: last_line(folder / f"{study.name}.log") for study in studies},
    }
    for name, code in codes.items():
        if code:
            print(f"{name} ended with exit code {code}: {figures['last_lines'][name]}", flush=True)
    line = f"{len(recorded)} trials in {elapsed:.0f} s with {figures['workers']} workers: {per_minute:.1f} a minute"
    arguments.recorder.write("trials", figures, line)


if __name__ == "__main__":
    main(parse_arguments("trials"))
