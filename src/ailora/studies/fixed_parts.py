"""Parts of a study that must not change after its first run, and checks that refuse such changes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ailora.checkpoints.request import describe_differences
from ailora.errors import InputError
from ailora.path_kind import is_folder
from ailora.redaction import mask_url
from ailora.studies.storage_url import sqlite_file
from ailora.studies.study_config import StudyConfig
from ailora.studies.trial_keys import TrialKeys, find_moved_paths, is_same_identity, read_identities
from ailora.studies.trial_storage import TrialStorage

#: Keys of a study file fixed after its first trial: with other values, later trials would not be comparable.
_FIXED_KEYS = ("base", "metric", "match_parameters", "pruning")


def validate_same_study(config: StudyConfig, storage: TrialStorage) -> None:
    """Refuse a study file that changes a fixed part of its stored study.

    Raises:
        InputError: A fixed part has changed, or the storage holds a search or a damaged study.
    """
    if storage.is_search:
        raise InputError(
            f"{mask_url(storage.url)} holds a search of `ailora tune` with the name {storage.name!r}: choose a "
            "different storage or name"
        )
    plain = config.model_dump(by_alias=True)
    try:
        current, stored = _fixed_parts(plain), _fixed_parts(storage.config)
        if _is_sequential(storage.config):
            # The error rate holds only if the looks, margin, baseline and rates were planned before the first look.
            current |= _sequential_parts(plain)
            stored |= _sequential_parts(storage.config)
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError) as error:
        raise InputError(
            f"{mask_url(storage.url)}: the file of the study {storage.name!r} is damaged ({error!r})"
        ) from None
    # Tasks and methods may be added; for their removal, see `validate_no_comparison_removed`.
    shared = current.keys() & stored.keys()
    if changes := describe_differences({key: current[key] for key in shared}, {key: stored[key] for key in shared}):
        raise InputError(
            f"the study {storage.name!r} no longer fits its storage ({changes}): choose a different output or name"
        )


def validate_same_output(config: StudyConfig, storage: TrialStorage) -> None:
    """Refuse a second output folder for a study, since its runs would then be in two folders.

    The output folder may move, together with a database inside it or to a different machine. A recorded folder that is
    missing here counts as moved, even if it exists on a different machine.

    Raises:
        InputError: The output folder of the stored study exists, and is not that of the study file.
    """
    output, database = Path(config.output), sqlite_file(storage.url)
    recorded = storage.config.get("output")
    if database is not None and database.absolute().is_relative_to(output):
        return
    if isinstance(recorded, str) and is_folder(Path(recorded)) and Path(recorded).resolve() != output.resolve():
        raise InputError(
            f"output: {output} is not the folder of the study {storage.name!r} in {mask_url(storage.url)}: set output "
            f"to {recorded} to continue this study, or choose a different name for a new one"
        )


def validate_same_paths(keys: TrialKeys, storage: TrialStorage) -> None:
    """Refuse to run a study whose data or model are found at other paths than in the last `ailora study run`.

    Paths are part of the trials' keys. Without this check, all trials would run a second time.

    Args:
        keys: Keys of the study on this machine, in this folder.
        storage: Trials of the study.

    Raises:
        InputError: A path differs.
    """
    recorded = read_identities(storage.trial_keys)
    for condition, identity in keys.identities.items():
        if moved := find_moved_paths(identity, recorded.get(condition, identity)):
            stored = {name: pair[0] for name, pair in moved.items()}
            current = {name: pair[1] for name, pair in moved.items()}
            differences = describe_differences(current, stored)
            missing = _find_missing(stored.values())
            advice = f"{missing} is missing here: restore it" if missing else "restore the same paths"
            raise InputError(
                f"the study {storage.name!r} runs with other paths ({differences}); {advice}, "
                f"call `ailora study run` in {storage.folder or 'the same folder'}, or choose a different output and "
                "name for a new study"
            )


def validate_no_comparison_removed(keys: TrialKeys, storage: TrialStorage) -> None:
    """Refuse a sequential study that lost a condition: a method, a task or a setting of the grid.

    With fewer comparisons, Holm's correction would be weaker for the comparisons that look best so far. Conditions may
    get new names, and may be added.

    Args:
        keys: Keys of the study.
        storage: Trials of the study.

    Raises:
        InputError: A condition is missing.
    """
    if not _is_sequential(storage.config):
        return
    for condition, recorded in read_identities(storage.trial_keys).items():
        # With another version of ailora, the identity of the same condition may differ.
        is_present = condition in keys.identities
        if not is_present and not any(is_same_identity(identity, recorded) for identity in keys.identities.values()):
            place = f" on {condition.label}" if condition.label else ""
            raise InputError(
                f"the study {storage.name!r} runs until its comparisons are decided, and {condition.method}{place} is "
                "no longer among them, which would weaken the correction of the others: add it again, or choose a "
                "different output or name"
            )


def _is_sequential(study: Mapping[str, Any]) -> bool:
    """Return whether the seeds of a study file run until every comparison is decided."""
    return isinstance(study["seeds"], dict)


def _find_missing(values: Iterable[object]) -> str | None:
    """Return the first absolute path that does not exist on this machine, or None."""
    paths = [path for value in values for path in (value if isinstance(value, list) else [value])]
    return next((p for p in paths if isinstance(p, str) and os.path.isabs(p) and not os.path.exists(p)), None)


def _fixed_parts(study: Mapping[str, Any]) -> dict[str, Any]:
    """Select the parts of a study file that must not change: fixed keys, and overrides of tasks and methods.

    The learning rates of a method may change, like those of the study.
    """
    parts = {key: study.get(key) for key in _FIXED_KEYS}
    parts |= {f"tasks.{label}": changes for label, changes in (study["tasks"] or {}).items()}
    return parts | {
        f"methods.{label}": {key: value for key, value in changes.items() if key != "learning_rate"}
        for label, changes in _method_overrides(study).items()
    }


def _method_overrides(study: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return label -> overrides of each method in a study file."""
    entries = [entry if isinstance(entry, dict) else {entry: None} for entry in study["methods"]]
    # The overrides in a storage may be damaged.
    return {
        label: changes if isinstance(changes, dict) else {} for entry in entries for label, changes in entry.items()
    }


def _sequential_parts(study: Mapping[str, Any]) -> dict[str, Any]:
    """Select further parts that must not change in a study whose seeds run until every comparison is decided."""
    methods = _method_overrides(study)
    parts = {key: study.get(key) for key in ("seeds", "seeds_at", "margin", "learning_rate")}
    parts |= {f"methods.{label}.learning_rate": changes.get("learning_rate") for label, changes in methods.items()}
    return parts | {"baseline": study.get("baseline") or next(iter(methods))}
