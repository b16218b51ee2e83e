"""Versions of libraries: those that made a thing, and those that are installed."""

from __future__ import annotations

from typing import Any

from ailora.plan.adapter_metadata import library_versions


def other_versions(what: str, there: Any) -> list[str]:
    """A sentence on how the versions that made a run or an analysis differ from the installed ones; none: they do not.

    Args:
        what: the thing, in a word.
        there: library -> version, as its file says; anything else is not known.
    """
    if not isinstance(there, dict):
        return []
    now = library_versions()
    changed = [f"{name} {there[name]} (now {now[name]})" for name in now if name in there and there[name] != now[name]]
    return [f"This {what} was made with other versions than are installed: {', '.join(changed)}."] if changed else []
