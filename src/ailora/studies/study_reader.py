"""Read the progress of a study without importing the packages for training, which takes seconds."""

from __future__ import annotations

from ailora.studies.study_config import StudyConfig
from ailora.studies.trial_keys import TrialKeys
from ailora.studies.trial_storage import TrialStorage


def load_trial_keys(config: StudyConfig) -> tuple[TrialStorage, TrialKeys]:
    """Load the trials of a study and their keys, read-only, and without importing methods of the user.

    Keys come from the storage if the study file, the versions and the folders are those at the last `ailora study run`;
    else they are computed from the study's design.

    Args:
        config: the study file.

    Returns:
        The storage, and the current keys of the study's trials.

    Raises:
        InputError: The file is invalid or contradicts its storage, or there is no such study.
    """
    assert config.storage is not None
    assert config.name is not None
    storage = TrialStorage.load_or_none(config.storage, config.name, read_only=True)
    if storage is not None:
        if (keys := TrialKeys.from_text(storage.trial_keys, config)) is not None:
            return storage, keys
        storage.close()
    # Validating the configurations of runs imports transformers and TRL.
    from ailora.studies.study import load_study

    storage, design = load_study(config)
    return storage, design.keys
