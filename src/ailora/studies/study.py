"""Create or load studies, run their workers, and read their trials as a table."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import filelock
import pandas as pd
import torch

from ailora.atomic_io import format_json, refuse_link
from ailora.checkpoints.output_path import writing
from ailora.checkpoints.request import describe_differences
from ailora.child_environment import safe_environment
from ailora.errors import InputError
from ailora.formatting import shorten
from ailora.recipes.config.validation import short_repr
from ailora.recipes.registry import make_recipe
from ailora.redaction import mask_url
from ailora.studies.study_config import StudyConfig, load_study_config
from ailora.studies.study_design import StudyDesign
from ailora.studies.trial import Status
from ailora.studies.trial_storage import TrialStorage
from ailora.studies.worker import enqueue_missing_trials

#: Keys of a study file fixed after its first trial: with other values, later trials would not be comparable.
_FIXED_KEYS = ("base", "metric", "match_parameters", "pruning")
#: Interval between checks of the workers.
_POLL_INTERVAL_S = 0.5
#: Exit code of a worker with invalid input; a restart would fail again.
_INVALID_INPUT_EXIT_CODE = 2
#: Limit for worker deaths in a row while no trial advances, per worker.
_MAX_FRUITLESS_DEATHS = 5


def create_or_load_study(config: StudyConfig) -> tuple[TrialStorage, StudyDesign]:
    """Create the study of a file in its storage, or load it and add the trials of an extended file.

    Trials that failed by invalid input, such as a missing data file, return to the queue.

    Returns:
        The storage and the design of the study.

    Raises:
        InputError: The file is invalid or does not fit the stored study, data files or the model of trials to run are
            missing or invalid, or the storage cannot be reached. Nothing is written to the storage.
    """
    design = StudyDesign(config)
    assert config.storage is not None
    assert config.name is not None
    output = Path(config.output)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    with writing(output), filelock.FileLock(output / ".study.lock"):
        plain = config.model_dump(by_alias=True)
        storage = TrialStorage.load_or_none(config.storage, config.name)
        if storage is None:
            _validate_inputs(design)
            storage = TrialStorage.create(config.storage, config.name, plain)
        else:
            _validate_same_study(config, storage)
            if _has_trials_to_run(storage, design):
                _validate_inputs(design)
            storage.update_config(plain)
        storage.save_folder(Path.cwd())
        storage.save_trial_keys(design.keys.to_text(config))
        storage.retry_refused(design.keys)
        enqueue_missing_trials(storage, design)
    return storage, design


def load_study(config: StudyConfig) -> tuple[TrialStorage, StudyDesign]:
    """Load the study of a file read-only, without importing user-defined methods.

    Returns:
        The storage and the design of the study.

    Raises:
        InputError: The file is invalid or does not fit the stored study, or there is no such study.
    """
    design = StudyDesign(config, to_run=False)
    assert config.storage is not None
    assert config.name is not None
    storage = TrialStorage.load(config.storage, config.name, read_only=True)
    _validate_same_study(config, storage)
    return storage, design


def load_study_from_storage(
    url: str, name: str, *, secrets: Mapping[str, Any] | None = None, to_run: bool = True
) -> tuple[TrialStorage, StudyDesign]:
    """Load a study from its storage, without its file, for workers on any machine and for reports.

    Relative paths to data and model are those in the working folder of the last `ailora study run`.

    Args:
        url: Optuna database URL.
        name: Name of the study.
        secrets: Study file with its secrets, because the storage has none; None for a study without secrets.
        to_run: Whether trials are to run. Otherwise the storage is opened read-only, and user-defined methods are not
            imported.

    Returns:
        The storage and the design of the study.

    Raises:
        InputError: The storage cannot be reached, has no such study, or has a study with an invalid file.
    """
    storage = TrialStorage.load(url, name, read_only=not to_run)
    try:
        plain = secrets or storage.config
        if not isinstance(plain.get("base"), dict):
            raise InputError(f"base: expected a mapping, got {short_repr(plain.get('base'))}")
        config = load_study_config(plain)
        return storage, StudyDesign(config, to_run=to_run, folder=storage.folder)
    except InputError as error:
        storage.close()
        raise InputError(f"{mask_url(url)}: the study {name!r} cannot be read: {error}") from None


def trial_frame(storage: TrialStorage, design: StudyDesign) -> pd.DataFrame:
    """Read the trials that match the current study file and the installed versions.

    Returns:
        A row for each trial, with the columns of `Trial.to_row`.
    """
    return pd.DataFrame([t.to_row(design.config.grid) for t in design.keys.matching_trials(storage.trials())])


class WorkerInput(Protocol):
    """Input of workers: a study file, or the request of `ailora tune`."""

    @property
    def output(self) -> str:
        """Folder of the study or search; the logs of workers are in its folder `workers`."""
        ...

    def model_dump(self, *, by_alias: bool, context: Mapping[str, Any]) -> dict[str, Any]:
        """Convert to plain data, with secrets if the context has `secrets: True`."""
        ...


def run_workers(storage: TrialStorage, config: WorkerInput, count: int, on_poll: Callable[[], None]) -> None:
    """Run workers on a study until all trials have ended, and replace workers that die.

    Args:
        storage: Trials of the study.
        config: Study file, or request of `ailora tune`.
        count: Number of workers.
        on_poll: Called regularly, to show the progress.

    Raises:
        InputError: A worker refuses to start, or workers keep dying while no trial advances.
        KeyboardInterrupt: The user interrupted the study; running trials return to the queue.
    """
    logs = Path(config.output) / "workers"
    with writing(logs):
        logs.mkdir(parents=True, exist_ok=True)
    files = [logs / f"{number}.log" for number in range(count)]
    workers = {log: _start_worker(storage, config, log, count) for log in files}
    deaths, progress = 0, _count_attempts(storage)
    try:
        while workers:
            time.sleep(_POLL_INTERVAL_S)
            on_poll()
            for log, worker in list(workers.items()):
                code = worker.poll()
                if code is None:
                    continue
                _close(workers.pop(log))
                if code == 0:
                    continue
                deaths = deaths + 1 if _count_attempts(storage) == progress else 1
                progress = _count_attempts(storage)
                if code == _INVALID_INPUT_EXIT_CODE or deaths > count * _MAX_FRUITLESS_DEATHS:
                    raise InputError(f"a worker ended with {_describe_exit(code)}{_last_line(log)}: see {log}")
                workers[log] = _start_worker(storage, config, log, count)
    finally:
        # All inputs are closed before the first wait, so the workers stop at the same time.
        for worker in workers.values():
            _close(worker)
        for worker in workers.values():
            worker.wait()


def _start_worker(storage: TrialStorage, config: WorkerInput, log: Path, count: int) -> subprocess.Popen[bytes]:
    """Start a worker. It stops when its standard input ends, hence also if this process is killed.

    The first line of the input contains the URL and the study file with their secrets. Secrets must appear neither in
    the process list nor in the storage. See `ailora.cli.study_progress.read_handover`.
    """
    threads = max(1, (os.cpu_count() or 1) // count)
    with writing(log), open(log, "ab", opener=refuse_link) as output:
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "ailora", "study", "work", mask_url(storage.url), storage.name, "--tied"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            # Each worker gets its share of the cores, unless the user has set a number of threads.
            env={"OMP_NUM_THREADS": str(threads), **safe_environment(), **_device_environment(int(log.stem), count)},
            # In the session of this process, Ctrl-C would also interrupt the workers. Closing their input stops them.
            start_new_session=True,
        )
    assert worker.stdin is not None
    handover = {"storage": storage.url, "study": config.model_dump(by_alias=True, context={"secrets": True})}
    # The worker may be dead already; `run_workers` then replaces it.
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.write(format_json(handover).encode() + b"\n")
        worker.stdin.flush()
    return worker


def _device_environment(number: int, count: int) -> dict[str, str]:
    """Assign a GPU to each of several workers; a single worker sees all GPUs, like a run."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = [str(i) for i in range(torch.cuda.device_count())] if visible is None else visible.split(",")
    return {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]} if count > 1 and len(devices) > 1 else {}


def _close(worker: subprocess.Popen[bytes]) -> None:
    """Stop a worker by closing its standard input."""
    assert worker.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.close()


def _count_attempts(storage: TrialStorage) -> Counter[Status]:
    """Count attempts by status of their trial; equal counts at two deaths mean no progress between them."""
    counts: Counter[Status] = Counter()
    for trial in storage.trials():
        counts[trial.status] += trial.attempts
    return counts


def _describe_exit(code: int) -> str:
    return f"code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f" ({shorten(last, 300)})" if last else ""


def _validate_inputs(design: StudyDesign) -> None:
    """Read the data files and the tokenizer of each condition; those of several conditions are read once.

    Raises:
        InputError: A model is missing, or data files are missing or invalid. Without this check, all trials would fail.
    """
    validated: set[str] = set()
    for condition in design.conditions:
        config = design.base_config(condition)
        inputs = format_json(config.model_dump(mode="json", exclude={"adapter", "training", "output"}))
        if inputs in validated:
            continue
        validated.add(inputs)
        try:
            recipe = make_recipe(config)
            _ = recipe.tokenizer
            recipe.read_files()
        except InputError as error:
            raise InputError(f"{condition.label}: {error}" if condition.label else str(error)) from None


def _has_trials_to_run(storage: TrialStorage, design: StudyDesign) -> bool:
    """Return whether a required trial is missing, waits, or failed by invalid input."""
    trials = design.keys.matching_trials(storage.trials())
    ended = {trial.key for trial in trials if trial.ended and not trial.refused}
    return not ended.issuperset(map(design.keys.key, design.required_trials(trials)))


def _validate_same_study(config: StudyConfig, storage: TrialStorage) -> None:
    """Refuse a study file that changes a fixed part of its stored study."""
    if storage.is_search:
        raise InputError(
            f"{mask_url(storage.url)} holds a search of `ailora tune` with the name {storage.name!r}: choose a "
            "different storage or name"
        )
    plain = config.model_dump(by_alias=True)
    now, there = _fixed_parts(plain), _fixed_parts(storage.config)
    if isinstance(storage.config["seeds"], dict):
        # The error rate holds only if looks, comparisons and rates were planned before the first look.
        now |= _sequential_parts(plain)
        there |= _sequential_parts(storage.config)
    shared = now.keys() & there.keys()
    if changes := describe_differences({key: now[key] for key in shared}, {key: there[key] for key in shared}):
        raise InputError(
            f"the study {storage.name!r} no longer fits its storage ({changes}): choose a different output or name"
        )


def _fixed_parts(study: Mapping[str, Any]) -> dict[str, Any]:
    """Select the parts of a study file that must not change: fixed keys, and overrides of tasks and methods."""
    methods = [entry if isinstance(entry, dict) else {entry: None} for entry in study["methods"]]
    parts = {key: study.get(key) for key in _FIXED_KEYS}
    parts |= {f"tasks.{label}": changes for label, changes in (study["tasks"] or {}).items()}
    return parts | {f"methods.{label}": entry[label] for entry in methods for label in entry}


def _sequential_parts(study: Mapping[str, Any]) -> dict[str, Any]:
    """Select the parts of a study file that must not change once its seeds run until every comparison is decided."""
    first = study["methods"][0]
    label = next(iter(first)) if isinstance(first, dict) else first
    parts = {key: study.get(key) for key in ("seeds", "seeds_at", "margin", "learning_rate")}
    return parts | {"baseline": study.get("baseline") or label}
