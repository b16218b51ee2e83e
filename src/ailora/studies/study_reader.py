"""Read how far a study is, without the packages that train: these take seconds to import."""

from __future__ import annotations

from ailora.studies.study_config import StudyConfig
from ailora.studies.trial_keys import TrialKeys
from ailora.studies.trial_storage import TrialStorage


def load_trial_keys(config: StudyConfig) -> tuple[TrialStorage, TrialKeys]:
    """Load the trials of a study and their keys from its storage, which is only read; no method is imported.

    The keys are those that `ailora study run` has stored, if the study file, the versions and the folders are still the
    same, and else those of its design.

    Args:
        config: the study file.

    Returns:
        The trials, and the keys that the study has for them now.

    Raises:
        InputError: The file is wrong, or no longer fits its storage; there is no such study.
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
