"""Arguments of `ailora report`: runs, studies and analyses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from ailora.errors import AiloraError, InputError
from ailora.path_kind import PathKind, detect_path_kind
from ailora.recipes.config.yaml_file import read_yaml
from ailora.studies.storage_url import sqlite_url, study_names
from ailora.studies.study import load_study, load_study_from_storage
from ailora.studies.study_config import load_study_config
from ailora.studies.study_design import StudyDesign
from ailora.studies.study_reader import find_inputs
from ailora.studies.trial_storage import TrialStorage

#: Function that loads a study. It returns the storage, which the caller closes, and the design.
StudyLoader = Callable[[], tuple[TrialStorage, StudyDesign]]

_STUDY_SUFFIXES = (".yaml", ".yml")


def detect_input(path: Path) -> PathKind:
    """Return whether an argument is a run, a study or an analysis.

    Args:
        path: A folder, or a study file.

    Raises:
        InputError: The argument is none of the three.
    """
    if path.is_file():
        if path.suffix in _STUDY_SUFFIXES:
            return _validate_study_file(path)
        raise InputError(f"{path} is a file: give the folder of a run or an analysis, or a study's folder or YAML file")
    if not path.is_dir():
        raise InputError(f"there is no {path}")
    if (kind := detect_path_kind(path)) and kind in (PathKind.RUN, PathKind.STUDY, PathKind.ANALYSIS):
        return kind
    names = sorted(entry.name for entry in path.iterdir())
    content = ", ".join(names[:5] + ["..."] * (len(names) > 5)) or "nothing"
    raise InputError(
        f"{path} is none of a run (it would hold config.yaml), a study (study.db) and an analysis (analysis.json); "
        f"it holds {content}"
    )


def find_read_paths(path: Path, scale: str | None) -> list[Path]:
    """Return the files and folders that a report reads for an argument, which the report must not overwrite.

    Args:
        path: A folder, or a study file, which need not be valid.
        scale: Name of an entry below `scales:` of the study file.
    """
    if path.is_file():
        # An invalid study file is no error here: `build_page` adds it to the problems of the page.
        with suppress(AiloraError, OSError):
            return [path, *find_inputs(load_study_config(path, scale=scale))]
    return [path]


def find_studies(path: Path, scale: str | None) -> list[StudyLoader]:
    """Find the study of a study file, or all studies of the database in a study's folder.

    Args:
        path: A study file, or a folder with `study.db`.
        scale: Name of an entry below `scales:` of the study file.

    Returns:
        Loader of each study. It raises `InputError` if the study file is invalid, or if the storage does not hold the
        study.

    Raises:
        InputError: The database holds no study, or cannot be read.
    """
    if path.is_file():
        return [lambda: load_study(load_study_config(path, scale=scale))]
    url = sqlite_url((path / "study.db").absolute())
    names = study_names(url)
    if not names:
        raise InputError(f"{path / 'study.db'} holds no study")
    return [partial(load_study_from_storage, url, name, to_run=False) for name in names]


def _validate_study_file(file: Path) -> PathKind:
    raw = read_yaml(file)
    if isinstance(raw, dict) and "methods" in raw:
        return PathKind.STUDY
    if isinstance(raw, dict) and "recipe" in raw:
        raise InputError(f"{file} is the configuration of a run: give the run's folder, which is its `output`")
    raise InputError(f"{file} is not a study file: it has no key `methods`")
