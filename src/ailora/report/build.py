"""Build a page from arguments; one that cannot be shown is named on the page."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
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
from ailora.report.inputs import detect_input, open_studies
from ailora.report.run_page import run_chapter
from ailora.report.run_reader import read_run
from ailora.report.study_page import study_chapter


def build_page(paths: Sequence[Path], *, scale: str | None = None, bootstrap: bool = True) -> Page:
    """Build the page of runs, studies and analyses, in the order of the arguments; all runs are one chapter.

    Args:
        paths: folders of runs, studies and analyses, and study files.
        scale: a set of keys below `scales:` of study files.
        bootstrap: whether studies get intervals over seeds and examples, from kept predictions.

    Returns:
        The page as plain data; `write_page` writes it.

    Raises:
        InputError: None of the arguments can be shown; the message has the reason for each.
    """
    problems: list[str] = []
    kinds: dict[Path, PathKind] = {}
    for path in dict.fromkeys(paths):
        with _collecting(problems, path):
            kinds[path] = detect_input(path)
    chapters: list[Chapter] = []
    if folders := [path for path, kind in kinds.items() if kind is PathKind.RUN]:
        names = unique_names(folders)
        chapters.append(run_chapter([read_run(folder, name) for folder, name in zip(folders, names, strict=True)]))
    for path, kind in kinds.items():
        with _collecting(problems, path):
            if kind is PathKind.ANALYSIS:
                chapters.append(analysis_chapter(path.absolute().name, load_analysis(path)))
            elif kind is PathKind.STUDY:
                chapters += _study_chapters(path, scale, bootstrap=bootstrap)
    if not chapters:
        raise InputError("; ".join(problems) or "nothing to report: give runs, a study or an analysis")
    titles = dict.fromkeys(chapter.title for chapter in chapters)
    made = (f"ailora {version('ailora')}", datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"))
    return Page(join_names(titles), tuple(chapters), tuple(problems), made)


@contextlib.contextmanager
def _collecting(problems: list[str], path: Path) -> Iterator[None]:
    """Collect the error of one argument, so that the others are shown."""
    try:
        yield
    except (AiloraError, OSError) as error:
        problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")


def _study_chapters(path: Path, scale: str | None, *, bootstrap: bool) -> Iterator[Chapter]:
    for storage, design in open_studies(path, scale):
        try:
            yield study_chapter(storage.name, storage.config, storage.trials(), design, bootstrap=bootstrap)
        finally:
            storage.close()
