"""Run a search: create or load it, run its trials, and complete the winner as an ordinary finished run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import filelock
import torch

from ailora.atomic_io import write_json
from ailora.checkpoints.output_path import writing
from ailora.checkpoints.request import describe_differences
from ailora.errors import InputError
from ailora.recipes import registry
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.training.step_counts import evaluation_steps, rows_per_step
from ailora.recipes.training.trainer_checkpoints import read_train_seconds
from ailora.redaction import mask_url, without_secrets
from ailora.studies.storage_url import sqlite_url
from ailora.studies.study import validate_inputs
from ailora.studies.trial import Status
from ailora.studies.trial_storage import TrialStorage
from ailora.studies.worker_processes import run_workers
from ailora.tune.halving import SearchProgress, find_progress, remove_checkpoints
from ailora.tune.rate_centers import RateCenters, find_rate_centers
from ailora.tune.search_space import SearchSpace
from ailora.tune.tune_design import TuneDesign
from ailora.tune.tune_request import TUNE_FOLDER, TuneRequest, parse_request, plain_config
from ailora.tune.tune_result import TuneResult, build_result


def open_search(config: RunConfig) -> tuple[TrialStorage, TuneDesign]:
    """Create the search of a configuration, or load it from its output folder.

    Args:
        config: Configuration of the run, with its section `tune`.

    Returns:
        Storage and design of the search.

    Raises:
        InputError: A condition, the goal or the data are invalid, the budget is below one run, or the output folder
            contains a run or a different search. Nothing is written.
        ModelError: The model cannot be adapted under a condition.
    """
    base = plain_config(config)
    folder = Path(config.output) / TUNE_FOLDER
    url = config.tune.storage or sqlite_url(folder / "tune.db")
    name = Path(config.output).name
    if (storage := TrialStorage.load_or_none(url, name)) is not None:
        design = _load_design(storage, config)
        # Model and data may have moved since the search began, and workers read them only after claiming a trial.
        try:
            validate_machine_for_search(storage, design)
        except BaseException:
            storage.close()
            raise
        return storage, design
    request = _plan_request(config, base).model_copy(update={"output": str(folder), "storage": url, "name": name})
    design = TuneDesign(request)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with writing(folder), filelock.FileLock(folder / "lock"):
        # The same command on a second machine may have created the search meanwhile.
        if (storage := TrialStorage.load_or_none(url, name)) is not None:
            return storage, _load_design(storage, config)
        return TrialStorage.create(url, name, request.model_dump(by_alias=True)), design


def is_search(url: str, name: str) -> bool:
    """Return whether a storage holds a search of this name, rather than a study.

    Raises:
        InputError: The storage cannot be reached, or has neither search nor study of this name.
    """
    storage = TrialStorage.load(url, name, read_only=True)
    storage.close()
    return storage.is_search


def load_search(url: str, name: str, *, secrets: Mapping[str, Any] | None = None) -> tuple[TrialStorage, TuneDesign]:
    """Load a search for a worker.

    Args:
        url: An Optuna database URL.
        name: Name of the search in the storage.
        secrets: Request with the secrets, because the storage has none; None for a search without secrets.

    Returns:
        Storage and design of the search.

    Raises:
        InputError: The storage cannot be reached, has no such search, or has an invalid request.
    """
    storage = TrialStorage.load(url, name)
    return storage, TuneDesign(parse_request(secrets or storage.config))


def validate_machine_for_search(storage: TrialStorage, design: TuneDesign) -> None:
    """Validate that this machine can run the remaining trials of a search.

    Args:
        storage: Trials of the search.
        design: Design of the search.

    Raises:
        InputError: Trials remain, and the model is missing, or data files are missing or invalid. Without this check,
            all candidates would fail.
    """
    if not find_progress(storage.trials(), design).ended:
        validate_inputs([("", design.space.run)])


def run_search(
    storage: TrialStorage, design: TuneDesign, *, workers: int, on_poll: Callable[[TuneDesign], None]
) -> TuneResult:
    """Run the remaining trials of a search, and complete the winner's run in the output folder.

    Args:
        storage: Trials of the search.
        design: Design of the search.
        workers: Number of concurrent trials on this machine.
        on_poll: Called regularly with the current design, to show the progress.

    Returns:
        The result.

    Raises:
        InputError: All candidates failed, workers keep dying, or a budget in time is below one run.
    """
    if design.plan is None:
        # Use a single worker, so that no other trial slows the trial whose duration converts the budget into runs.
        run_workers(storage, design.request, 1, lambda: on_poll(design))
        design = _convert_budget(storage, design, workers)
    # Do not start workers without need: starting one takes seconds, even if no trial is left.
    if not find_progress(storage.trials(), design).ended:
        run_workers(storage, design.request, workers, lambda: on_poll(design))
    on_poll(design)
    return _finish(design, find_progress(storage.trials(), design))


def _load_design(storage: TrialStorage, config: RunConfig) -> TuneDesign:
    """Return the design of a stored search, after validating that it is the search of a configuration."""
    base = plain_config(config)
    try:
        request = parse_request(storage.config)
        stored = request.base
        if request.budget_runs is None and config.tune.budget_seconds is not None:
            # A budget in time may change until it is converted into runs: no rung depends on it yet.
            stored = stored | {"tune": stored["tune"] | {"budget": config.tune.budget}}
        changes = describe_differences(without_secrets(base), stored)
        if changes:
            raise InputError(f"it holds a different search ({changes}): choose a different output")
        return TuneDesign(request.model_copy(update={"base": base}))
    except InputError as error:
        storage.close()
        raise InputError(f"{mask_url(storage.url)}, {storage.name!r}: {error}") from None


def _plan_request(config: RunConfig, base: dict[str, Any]) -> TuneRequest:
    """Read the data, validate all conditions, and find the centers of the learning rates."""
    folder = RunFolder(config.output)
    if folder.config.exists():
        raise InputError(f"{config.output} holds a run that `ailora tune` did not make: choose a different output")
    folder.validate_claimable(config)
    space = SearchSpace(base)
    steps, rows_trained = _find_steps(config)
    budget = config.tune.budget_runs
    if config.tune.learning_rate == "auto":
        # The search needs the budget of at least one run.
        spare_runs = budget - 1 if budget is not None else float("inf")
        centers = find_rate_centers(space, rows_trained=rows_trained, spare_runs=spare_runs)
    else:
        # The file sets the learning rates, so the centers are not used.
        unused_centers = [1.0] * len(space.conditions)
        centers = RateCenters(unused_centers, cost_runs=0.0, seconds=0.0, origin="Learning rates of the file.")
    return TuneRequest(
        base=base,
        evaluation_steps=steps,
        centers=centers.centers,
        centers_origin=centers.origin,
        budget_runs=None if budget is None else budget - centers.cost_runs,
        suggestion_runs=centers.cost_runs,
        suggestion_seconds=centers.seconds,
        # `open_search` sets these fields.
        output="",
        storage="",
        name="",
    )


def _find_steps(config: RunConfig) -> tuple[list[int], int]:
    """Return the steps after which a run evaluates, and the number of rows of all its training steps."""
    if config.training.get("packing") and config.training.get("max_steps", -1) < 1:
        raise InputError("tune: training.packing leaves the number of steps unknown: set training.max_steps")
    recipe = registry.make_recipe(config)
    recipe.prepare()
    steps = evaluation_steps(recipe.arguments, len(recipe.datasets["train"]))
    if not steps:
        raise InputError(
            "tune compares runs by their evaluations during training, and training.eval_strategy is 'no': set it to "
            "'steps' or 'epoch'"
        )
    return steps, steps[-1] * rows_per_step(recipe.arguments)


def _convert_budget(storage: TrialStorage, design: TuneDesign, workers: int) -> TuneDesign:
    """Convert a budget in time into runs, by the duration of the first trial."""
    seconds = design.space.run.tune.budget_seconds
    assert seconds is not None
    spec = design.spec(design.candidates[0], design.rungs[0][0])
    trial = next(trial for trial in storage.trials() if trial.key == design.keys.key(spec))
    if trial.status is not Status.COMPLETE or trial.result is None:
        raise InputError(f"tune: the duration of a run is unknown, because the first candidate failed: {trial.error}")
    checkpoint = RunFolder(design.run_config(spec).output).find_newest_checkpoint()
    assert checkpoint is not None
    assert spec.until_step is not None
    train_seconds = read_train_seconds(checkpoint)
    run_seconds = train_seconds * design.total_steps / spec.until_step
    # Workers on a CPU share its cores: more workers are faster only if each has its own GPU.
    parallel = min(workers, max(1, torch.accelerator.device_count()))
    request = design.request.model_copy(
        update={
            "budget_runs": (seconds - design.request.suggestion_seconds) * parallel / run_seconds,
            # Time of a trial outside its training steps, such as for starting the process and loading the model.
            "overhead_runs": max(0.0, (trial.result.seconds or train_seconds) - train_seconds) / run_seconds,
        }
    )
    try:
        converted = TuneDesign(request)
    except InputError as error:
        raise InputError(f"tune.budget {design.space.run.tune.budget}: {error}") from None
    storage.update_config(request.model_dump(by_alias=True))
    return converted


def _finish(design: TuneDesign, progress: SearchProgress) -> TuneResult:
    """Complete the winner's run in the output folder: evaluate and save the model, and write `tune.json`."""
    winner = progress.winner
    if winner is None:
        errors = [trial.error for trial in progress.rungs[-1].trials.values() if trial and trial.error]
        raise InputError(f"tune: no candidate reached the end of rung {len(progress.rungs)}: {errors[0]}")
    config = design.final_config(winner)
    folder = RunFolder(config.output)
    # The same command on a second machine may complete the run at the same time.
    with filelock.FileLock(Path(design.request.output) / "lock"):
        if not folder.read_finished_result(config):
            trained = RunFolder(design.run_config(design.spec(winner, None)).output)
            folder.copy_training_state(trained, config)
            # The copied state is at the last step, so the run only evaluates and saves.
            registry.run(config)
        result = build_result(design, progress, winner)
        folder.claim(folder.search)
        write_json(folder.search, result.to_dict())
        remove_checkpoints(design, {*design.candidates})
    return result
