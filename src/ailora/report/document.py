"""The content of a page, without its looks: texts, tables and charts in sections.

Everything here is plain text. What is markup is decided in one place, the template, which escapes all of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from ailora.plots.chart_spec import Chart

_NUMBER = re.compile(r"\[?[-+]?[0-9][0-9,]*\.?[0-9]*(e[-+]?[0-9]+)?(?![0-9A-Za-z.:-])", re.IGNORECASE)
#: Cells without a value.
MISSING = ("", "-")
#: Words that stand among numbers.
_WORDS_AMONG_NUMBERS = (*MISSING, "baseline", "not reached", "not a number", "infinite", "minus infinite")


@dataclass(frozen=True)
class Paragraphs:
    """Sentences.

    Attributes:
        sentences: in their order.
        listed: as a list; else a paragraph each.
        collapsed: heading of a list that is closed until the reader opens it; empty: it is open.
    """

    sentences: tuple[str, ...]
    listed: bool = False
    collapsed: str = ""
    kind: ClassVar[str] = "paragraphs"


@dataclass(frozen=True)
class Note:
    """Something that the reader must know before believing the rest: a part that is missing, or damaged."""

    text: str
    level: Literal["note", "error"] = "note"
    kind: ClassVar[str] = "note"


@dataclass(frozen=True)
class KeyValues:
    """A few values to see at a glance."""

    pairs: tuple[tuple[str, str], ...]
    kind: ClassVar[str] = "key_values"


@dataclass(frozen=True)
class Code:
    """Text that is kept as it stands: a command, a configuration."""

    title: str
    text: str
    collapsed: bool = False
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Table:
    """A table that readers can sort.

    Attributes:
        title: above the table.
        columns: their heads.
        rows: a text for each column.
        notes: below the table.
        wrapped: whether cells hold long texts, which are broken into lines.
        collapsed: whether it is closed until the reader opens it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    wrapped: bool = False
    collapsed: bool = False
    kind: ClassVar[str] = "table"

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Whether the cells of each column are numbers, by which it is then sorted."""
        columns = (
            [row[i] for row in self.rows if row[i] not in _WORDS_AMONG_NUMBERS] for i in range(len(self.columns))
        )
        return tuple(bool(cells) and all(map(_NUMBER.match, cells)) for cells in columns)


@dataclass(frozen=True)
class Charts:
    """Charts that stand side by side."""

    charts: tuple[Chart, ...]
    kind: ClassVar[str] = "charts"


Block = Paragraphs | Note | KeyValues | Code | Table | Charts


@dataclass(frozen=True)
class Section:
    """Blocks below a heading."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Chapter:
    """A study, some runs, or an analysis.

    Attributes:
        title: its name.
        kind: of its content.
        sections: the first is a summary in words.
    """

    title: str
    kind: Literal["study", "run", "runs", "analysis"]
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: as the browser's tab shows it.
        chapters: in their order.
        problems: arguments that could not be shown, each with the reason.
        made: version and time of the program that made it.
    """

    title: str
    chapters: tuple[Chapter, ...]
    problems: tuple[str, ...] = ()
    made: tuple[str, ...] = ()

    @property
    def charts(self) -> Iterator[Chart]:
        """All charts, in the order of the page."""
        sections = (section for chapter in self.chapters for section in chapter.sections)
        for block in (block for section in sections for block in section.blocks):
            if isinstance(block, Charts):
                yield from block.charts


def section(title: str, *blocks: Block | None) -> Section | None:
    """Make a section of the blocks that have content. Returns None if there are none."""
    filled = tuple(block for block in blocks if block is not None and not _is_empty(block))
    return Section(title, filled) if filled else None


def sections(*optional: Section | None) -> tuple[Section, ...]:
    """Leave out the sections that are None."""
    return tuple(section for section in optional if section is not None)


def _is_empty(block: Block) -> bool:
    match block:
        case Paragraphs(sentences=content) | KeyValues(pairs=content) | Table(rows=content) | Charts(charts=content):
            return not content
        case _:
            return False
