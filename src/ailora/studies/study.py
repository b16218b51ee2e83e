"""Create or load studies, and read their trials as a table."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

import filelock
import pandas as pd

from ailora.atomic_io import format_json
from ailora.checkpoints.output_path import writing
from ailora.errors import InputError
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.config.validation import short_repr
from ailora.recipes.registry import make_recipe
from ailora.redaction import mask_url
from ailora.studies.fixed_parts import (
    validate_no_comparison_removed,
    validate_same_output,
    validate_same_paths,
    validate_same_study,
)
from ailora.studies.study_config import StudyConfig, load_study_config
from ailora.studies.study_design import StudyDesign
from ailora.studies.trial_keys import read_identities
from ailora.studies.trial_storage import TrialStorage
from ailora.studies.worker import enqueue_missing_trials


def create_or_load_study(config: StudyConfig, *, retry_refused: bool = False) -> tuple[TrialStorage, StudyDesign]:
    """Create the study of a file in its storage, or load it and add the trials of an extended file.

    Args:
        config: The study file.
        retry_refused: Whether trials that were refused for invalid input, such as a missing data file, return to the
            queue.

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
        plain_config = config.model_dump(by_alias=True)
        storage = TrialStorage.load_or_none(config.storage, config.name)
        if storage is None:
            validate_inputs(_label_configs(design))
            storage = TrialStorage.create(config.storage, config.name, plain_config)
        else:
            validate_same_study(config, storage)
            validate_same_output(config, storage)
            validate_same_paths(design.keys, storage)
            validate_no_comparison_removed(design.keys, storage)
            validate_machine(storage, design, retry_refused=retry_refused)
            storage.update_config(plain_config)
        # Workers and reports resolve relative paths of data and model in this folder.
        storage.save_folder(Path.cwd())
        storage.save_trial_keys(design.keys.to_text(config))
        if retry_refused:
            storage.retry_refused(design.keys)
        enqueue_missing_trials(storage, design)
    return storage, design


def load_study(config: StudyConfig) -> tuple[TrialStorage, StudyDesign]:
    """Load the study of a file read-only, without importing user-defined methods.

    Relative paths of data and model refer to the folder of the last `ailora study run`.

    Returns:
        The storage and the design of the study.

    Raises:
        InputError: The file is invalid or does not fit the stored study, or there is no such study.
    """
    assert config.storage is not None
    assert config.name is not None
    storage = TrialStorage.load(config.storage, config.name, read_only=True)
    with _closed_on_error(storage):
        validate_same_study(config, storage)
        return storage, _design_to_read(config, storage)


def load_study_from_storage(
    url: str, name: str, *, secrets: Mapping[str, Any] | None = None, to_run: bool = True
) -> tuple[TrialStorage, StudyDesign]:
    """Load a study from its storage, without its file, for workers on any machine and for reports.

    Relative paths of data and model refer to the folder of the last `ailora study run`.

    Args:
        url: Optuna database URL.
        name: Name of the study.
        secrets: Plain data of the study file with secrets, which the storage lacks; None for a study without secrets.
        to_run: Whether trials are to run. Otherwise the storage is opened read-only, and user-defined methods are not
            imported.

    Returns:
        The storage and the design of the study.

    Raises:
        InputError: The storage cannot be reached, has no such study, or has a study with an invalid file, or trials are
            to run and this machine lacks a file or folder of the study.
    """
    storage = TrialStorage.load(url, name, read_only=not to_run)
    with _closed_on_error(storage):
        try:
            plain = secrets or storage.config
            # `load_study_config` would open a string as a file, and the database is not trusted.
            if not isinstance(plain.get("base"), dict):
                raise InputError(f"base: expected a mapping, got {short_repr(plain.get('base'))}")
            config = load_study_config(plain)
            design = StudyDesign(config, folder=storage.folder) if to_run else _design_to_read(config, storage)
        except InputError as error:
            raise InputError(f"{mask_url(url)}: the study {name!r} cannot be read: {error}") from None
        if to_run:
            validate_same_paths(design.keys, storage)
    return storage, design


def trial_frame(storage: TrialStorage, design: StudyDesign) -> pd.DataFrame:
    """Read the trials that match the current study file and the installed versions.

    Returns:
        A row for each trial, with the columns of `Trial.to_row`.
    """
    return pd.DataFrame([t.to_row(design.config.grid) for t in design.keys.matching_trials(storage.trials())])


def validate_machine(storage: TrialStorage, design: StudyDesign, *, retry_refused: bool = False) -> None:
    """Validate that this machine can run the remaining trials of a study.

    Args:
        storage: Trials of the study.
        design: Design of the study.
        retry_refused: Whether trials that were refused for invalid input are to run again.

    Raises:
        InputError: Trials remain, and a model is missing, or data files are missing or invalid.
    """
    trials = design.keys.matching_trials(storage.trials())
    ended_keys = {trial.key for trial in trials if trial.ended and not (retry_refused and trial.refused)}
    required_keys = {design.keys.key(spec) for spec in design.required_trials(trials)}
    if not required_keys <= ended_keys:
        validate_inputs(_label_configs(design))


def validate_inputs(configs: Iterable[tuple[str, RunConfig]]) -> None:
    """Read the data files and the tokenizer of each configuration; inputs of several configurations are read once.

    Args:
        configs: Pairs of a label for messages, which may be empty, and a configuration.

    Raises:
        InputError: A model is missing, or data files are missing or invalid. Without this check, all trials would fail.
    """
    validated: set[str] = set()
    for label, config in configs:
        inputs = format_json(config.model_dump(mode="json", exclude={"adapter", "training", "output"}))
        if inputs in validated:
            continue
        validated.add(inputs)
        try:
            recipe = make_recipe(config)
            _ = recipe.tokenizer
            recipe.read_files()
        except InputError as error:
            raise InputError(f"{label}: {error}" if label else str(error)) from None


def _label_configs(design: StudyDesign) -> list[tuple[str, RunConfig]]:
    return [(condition.label, design.base_config(condition)) for condition in design.conditions]


@contextlib.contextmanager
def _closed_on_error(storage: TrialStorage) -> Generator[None, None, None]:
    try:
        yield
    except BaseException:
        storage.close()
        raise


def _design_to_read(config: StudyConfig, storage: TrialStorage) -> StudyDesign:
    """Build a design whose keys are those of the last `ailora study run`, even where its data are missing.

    The model may be missing too, unless ranks are matched by its parameters.
    """
    design = StudyDesign(config, to_run=False, folder=storage.folder)
    design.keys = design.keys.with_paths_of(read_identities(storage.trial_keys))
    return design
