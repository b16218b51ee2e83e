"""From arguments to a page: what can be shown is shown, what cannot is told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from ailora.analysis import load_analysis
from ailora.errors import AiloraError, InputError
from ailora.formatting import join_names
from ailora.path_kind import PathKind
from ailora.report.analysis_page import analysis_part
from ailora.report.document import Page, Part
from ailora.report.inputs import Source, open_studies, recognise
from ailora.report.run_page import run_part
from ailora.report.run_reader import Run, read_run
from ailora.report.study_page import study_part


def build(paths: Sequence[Path], *, scale: str | None = None, bootstrap: bool = True) -> Page:
    """The page of runs, studies and analyses, in this order of the arguments; all runs are one part.

    Args:
        paths: folders of runs, studies and analyses, and study files.
        scale: as of `load_study_config`, for study files.
        bootstrap: as of `studies.comparison.compare`.

    Raises:
        InputError: none of the arguments can be shown; why is said of each.
    """
    problems: list[str] = []
    sources: list[Source] = []
    for path in dict.fromkeys(paths):
        with _told(path, problems):
            sources.append(recognise(path))
    parts: list[Part] = []
    if runs := _runs([source.path for source in sources if source.sort is PathKind.RUN]):
        parts.append(run_part(runs))
    for source in (source for source in sources if source.sort is not PathKind.RUN):
        with _told(source.path, problems):
            parts += _parts(source, scale, bootstrap=bootstrap)
    if not parts:
        raise InputError("; ".join(problems) or "nothing to report: give runs, a study or an analysis")
    titles = list(dict.fromkeys(part.title for part in parts))
    made = (f"ailora {version('ailora')}", datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"))
    return Page(join_names(titles), tuple(parts), tuple(problems), made)


@contextlib.contextmanager
def _told(path: Path, problems: list[str]) -> Iterator[None]:
    """An argument that cannot be shown does not take the others along."""
    try:
        yield
    except (AiloraError, OSError) as error:
        said = str(error)
        problems.append(said if str(path) in said else f"{path}: {said}")


def _runs(folders: Sequence[Path]) -> list[Run]:
    return [read_run(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    parts = [folder.absolute().parts for folder in folders]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _parts(source: Source, scale: str | None, *, bootstrap: bool) -> Iterator[Part]:
    if source.sort is PathKind.ANALYSIS:
        yield analysis_part(source.path.absolute().name, load_analysis(source.path))
        return
    for storage, design in open_studies(source, scale):
        try:
            yield study_part(storage.name, storage.config, storage.trials(), design, bootstrap=bootstrap)
        finally:
            storage.close()
