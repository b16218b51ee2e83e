"""Read the progress of a study without the slow import of the training packages."""

from __future__ import annotations

from pathlib import Path

from ailora.studies.storage_url import sqlite_file
from ailora.studies.study_config import StudyConfig
from ailora.studies.trial_keys import TrialKeys
from ailora.studies.trial_storage import TrialStorage


def find_inputs(config: StudyConfig) -> list[Path]:
    """Return the files and folders that reports of a study read: its database, if it is a file, and its trials' folder.

    The results of the study exist nowhere else, so no output may replace these files and folders.
    """
    assert config.storage is not None
    database = sqlite_file(config.storage)
    return [*([database] if database else []), config.trials_folder]


def load_trial_keys(config: StudyConfig) -> tuple[TrialStorage, TrialKeys]:
    """Load a study's trials and their keys, read-only, without importing user-defined methods.

    Keys are read from the storage if the study file, the library versions and the folders have not changed since the
    last `ailora study run`. Otherwise they are computed from the study's design.

    Args:
        config: The study file.

    Returns:
        The storage, and the current keys of the study's trials.

    Raises:
        InputError: The file is invalid or does not fit the stored study, or there is no such study.
    """
    assert config.storage is not None
    assert config.name is not None
    storage = TrialStorage.load_or_none(config.storage, config.name, read_only=True)
    if storage is not None:
        if (keys := TrialKeys.from_text(storage.trial_keys, config)) is not None:
            return storage, keys
        storage.close()
    # Imported late: validating run configurations imports transformers and TRL.
    from ailora.studies.study import load_study

    storage, design = load_study(config)
    return storage, design.keys
