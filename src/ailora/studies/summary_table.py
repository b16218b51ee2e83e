"""Tables of a study's summary, for the terminal, Markdown and HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

#: Characters in names that Markdown would interpret: escapes, ends of cells, and starts of HTML tags.
_MARKUP = re.compile(r"[\\|]|<(?=[A-Za-z/!?])")


@dataclass(frozen=True)
class SummaryTable:
    """A table of strings.

    Attributes:
        title: Subject of the table.
        columns: Column names.
        rows: Rows of cells, a string for each column.
        notes: Explanations below the table.
        topic: Group of the table: scores, ranks, rates, importance, shared rates, speed, cost or failures.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    topic: str = ""

    def to_markdown(self) -> str:
        """Render as Markdown."""
        lines = [f"### {self.title}", "", *map(_markdown_line, [self.columns, ["---"] * len(self.columns), *self.rows])]
        return "\n".join([*lines, "", *(f"{note}\n" for note in self.notes)])


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_MARKUP.sub(r"\\\g<0>", " ".join(cell.split())) for cell in cells) + " |"
