"""Build a page from the arguments of `ailora report`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from ailora.analysis import load_analysis
from ailora.analysis.load_models import unique_names
from ailora.errors import AiloraError, InputError
from ailora.formatting import join_names
from ailora.path_kind import PathKind
from ailora.report.analysis_page import analysis_chapter
from ailora.report.document import Chapter, Page
from ailora.report.inputs import StudyLoader, detect_input, find_studies
from ailora.report.run_page import run_chapter
from ailora.report.run_reader import Run, read_run
from ailora.report.study_page import study_chapter


def build_page(paths: Sequence[Path], *, scale: str | None = None, bootstrap: bool = True) -> Page:
    """Build the page of runs, studies and analyses.

    Args:
        paths: Folders of runs, studies and analyses, and study files.
        scale: Name of an entry below `scales:` of the study files.
        bootstrap: Whether to compute bootstrap intervals for studies from their stored predictions.

    Returns:
        The page as plain data, to be written by `write_page`: a chapter of all runs, then studies and analyses in the
        order of the arguments. Its `problems` hold a message for each run, study or analysis that cannot be shown.

    Raises:
        InputError: No argument can be shown; the message has the reason for each.
    """
    problems: list[str] = []
    kinds: dict[Path, PathKind] = {}
    # A path given twice makes a single chapter.
    for path in dict.fromkeys(paths):
        with _collecting(problems, path):
            kinds[path] = detect_input(path)
    chapters: list[Chapter] = []
    if folders := [path for path, kind in kinds.items() if kind is PathKind.RUN]:
        names = unique_names(folders)
        runs: list[Run] = []
        for folder, name in zip(folders, names, strict=True):
            with _collecting(problems, folder):
                runs.append(read_run(folder, name))
        if runs:
            chapters.append(run_chapter(runs))
    for path, kind in kinds.items():
        with _collecting(problems, path):
            if kind is PathKind.ANALYSIS:
                chapters.append(analysis_chapter(path.absolute().name, load_analysis(path)))
            elif kind is PathKind.STUDY:
                for load in find_studies(path, scale):
                    with _collecting(problems, path):
                        chapters.append(_load_study_chapter(load, bootstrap=bootstrap))
    if not chapters:
        raise InputError("; ".join(problems) or "nothing to report: give runs, a study or an analysis")
    titles = dict.fromkeys(chapter.title for chapter in chapters)
    provenance = (f"ailora {version('ailora')}", datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"))
    return Page(join_names(titles), tuple(chapters), tuple(problems), provenance)


@contextlib.contextmanager
def _collecting(problems: list[str], path: Path) -> Generator[None, None, None]:
    """Collect the error of an argument, so that the other arguments are shown."""
    try:
        yield
    except (AiloraError, OSError) as error:
        # Most messages name the path already. Whole words are compared, because `runs/1` is a part of `runs/10`.
        words = re.split(r"[\s'\",;:()]+", str(error))
        problems.append(str(error) if str(path) in words else f"{path}: {error}")


def _load_study_chapter(load: StudyLoader, *, bootstrap: bool) -> Chapter:
    storage, design = load()
    with contextlib.closing(storage):
        return study_chapter(storage.name, storage.config, storage.trials(), design, bootstrap=bootstrap)
