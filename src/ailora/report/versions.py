"""Versions of libraries: those that made a run or an analysis, and those that are installed."""

from __future__ import annotations

from collections.abc import Mapping

from ailora.formatting import format_value
from ailora.plan.adapter_metadata import library_versions
from ailora.report.document import Table


def version_table(title: str, versions: Mapping[str, object]) -> Table:
    """Make a table of versions.

    Args:
        title: of the table.
        versions: column -> library -> version, as files say; anything but a mapping of libraries is left out.
    """
    known = {column: libraries for column, libraries in versions.items() if isinstance(libraries, Mapping)}
    names = dict.fromkeys(name for libraries in known.values() for name in libraries)
    rows = tuple((name, *(format_value(libraries.get(name)) for libraries in known.values())) for name in names)
    return Table(title, ("library", *known), rows)


def version_notes(kind: str, versions: object) -> list[str]:
    """Say how the versions that made a run or an analysis differ from the installed ones.

    Args:
        kind: the name of what was made.
        versions: library -> version, as its file says; anything else is unknown.

    Returns:
        One sentence, or none if they do not differ.
    """
    if not isinstance(versions, Mapping):
        return []
    changed = [
        f"{name} {versions[name]} (now {installed})"
        for name, installed in library_versions().items()
        if name in versions and versions[name] != installed
    ]
    return [f"This {kind} was made with other versions than are installed: {', '.join(changed)}."] if changed else []
