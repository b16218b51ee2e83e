"""What an argument of `ailora report` is: a run, a study or an analysis."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ailora.errors import InputError
from ailora.path_kind import PathKind, detect_path_kind
from ailora.recipes.config.yaml_file import read_yaml
from ailora.studies.storage_url import study_names
from ailora.studies.study import load_study, load_study_from_storage
from ailora.studies.study_config import load_study_config
from ailora.studies.study_design import StudyDesign
from ailora.studies.trial_storage import TrialStorage

_STUDY_FILES = (".yaml", ".yml")


@dataclass(frozen=True)
class Source:
    """An argument that has been recognised.

    Attributes:
        path: as it was given.
        sort: what it is.
    """

    path: Path
    sort: PathKind


def recognise(path: Path) -> Source:
    """What is there.

    Raises:
        InputError: nothing, or something else; what was looked for is said.
    """
    if path.is_file():
        if path.suffix in _STUDY_FILES:
            return Source(path, _of_yaml(path))
        raise InputError(f"{path} is a file: give the folder of a run or an analysis, or a study's folder or YAML file")
    if not path.is_dir():
        raise InputError(f"there is no {path}")
    if (kind := detect_path_kind(path)) and kind in (PathKind.RUN, PathKind.STUDY, PathKind.ANALYSIS):
        return Source(path, kind)
    raise InputError(
        f"{path} is none of a run (it would hold config.yaml), a study (study.db) and an analysis (analysis.json); "
        f"it holds {_held(path)}"
    )


def open_studies(source: Source, scale: str | None) -> list[tuple[TrialStorage, StudyDesign]]:
    """The studies of a study file, or of the database in a study's folder.

    Raises:
        InputError: the file is wrong, or its storage holds no such study.
    """
    if source.path.is_file():
        return [load_study(load_study_config(source.path, scale=scale))]
    url = f"sqlite:///{(source.path / 'study.db').absolute()}"
    names = study_names(url)
    if not names:
        raise InputError(f"{source.path / 'study.db'} holds no study")
    return [load_study_from_storage(url, name) for name in names]


def _of_yaml(file: Path) -> PathKind:
    raw = read_yaml(file)
    if isinstance(raw, dict) and "methods" in raw:
        return PathKind.STUDY
    if isinstance(raw, dict) and "recipe" in raw:
        raise InputError(f"{file} is the configuration of a run: give the run's folder, which is its `output`")
    raise InputError(f"{file} is no study file: it has no key `methods`")


def _held(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join([*names[:5], *(["..."] if len(names) > 5 else [])]) or "nothing"
