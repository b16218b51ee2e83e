"""Library versions of runs and analyses, compared with the installed versions."""

from __future__ import annotations

from collections.abc import Mapping

from ailora.formatting import format_value
from ailora.library_versions import library_versions
from ailora.report.document import ReportTable


def version_table(title: str, versions: Mapping[str, object]) -> ReportTable:
    """Build a table of versions.

    Args:
        title: Title of the table.
        versions: Column -> library -> version, read from files; columns without a mapping of libraries are left out.

    Returns:
        The table, with a row for each library.
    """
    columns = {column: libraries for column, libraries in versions.items() if isinstance(libraries, Mapping)}
    names = dict.fromkeys(name for libraries in columns.values() for name in libraries)
    rows = tuple((name, *(format_value(libraries.get(name)) for libraries in columns.values())) for name in names)
    return ReportTable(title, ("library", *columns), rows)


def version_notes(kind: str, versions: object) -> list[str]:
    """Compare the versions of a run or an analysis with the installed versions.

    Args:
        kind: `run` or `analysis`.
        versions: Library -> version, read from a file. Anything but a mapping counts as unknown.

    Returns:
        A list with one sentence on the differing versions; empty if no known version differs.
    """
    if not isinstance(versions, Mapping):
        return []
    changed = [
        f"{name} {versions[name]} (now {installed})"
        for name, installed in library_versions().items()
        if name in versions and versions[name] != installed
    ]
    return (
        [f"This {kind} was made with versions that differ from the installed: {', '.join(changed)}."] if changed else []
    )
