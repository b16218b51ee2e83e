"""Content of a page, without its appearance: chapters and sections of paragraphs, tables and charts.

All strings are plain text. Only the template adds markup, and it escapes every string.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from ailora.plots.chart_spec import Chart

#: A number at the start of a cell, alone or with an interval, but no version, date or time.
_NUMBER = re.compile(r"\[?[-+]?[0-9][0-9,]*\.?[0-9]*(e[-+]?[0-9]+)?(?![0-9A-Za-z.:-])", re.IGNORECASE)
#: Cells without a value.
MISSING = ("", "-")
#: Words that may stand in a column of numbers.
_WORDS_AMONG_NUMBERS = (*MISSING, "baseline", "not reached", "not a number", "infinite", "minus infinite")


@dataclass(frozen=True)
class Paragraphs:
    """Sentences, as paragraphs or as a list.

    Attributes:
        sentences: The sentences, in order.
        listed: Whether the sentences are items of a list, and not paragraphs.
        collapsed: Heading of a list whose items are hidden until the reader opens it; empty if they are shown at once.
    """

    sentences: tuple[str, ...]
    listed: bool = False
    collapsed: str = ""
    # The template distinguishes blocks by their kind, since it has no `isinstance`.
    kind: ClassVar[str] = "paragraphs"


@dataclass(frozen=True)
class Note:
    """Warning ahead of the content, about missing or damaged parts."""

    text: str
    level: Literal["note", "error"] = "note"
    kind: ClassVar[str] = "note"


@dataclass(frozen=True)
class KeyValues:
    """Names with their values, shown in large type."""

    pairs: tuple[tuple[str, str], ...]
    kind: ClassVar[str] = "key_values"


@dataclass(frozen=True)
class Code:
    """Preformatted text, such as a command or a configuration."""

    title: str
    text: str
    collapsed: bool = False
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class ReportTable:
    """A sortable table.

    Attributes:
        title: Caption above the table.
        columns: Column names.
        rows: Rows of cells, a string for each column.
        notes: Sentences below the table.
        wrapped: Whether long cells are wrapped into lines.
        collapsed: Whether the table is hidden until the reader opens it.
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
        """Whether each column holds numbers, and is sorted by them."""
        cells_by_column = (
            [row[i] for row in self.rows if row[i] not in _WORDS_AMONG_NUMBERS] for i in range(len(self.columns))
        )
        return tuple(bool(cells) and all(map(_NUMBER.match, cells)) for cells in cells_by_column)


@dataclass(frozen=True)
class Charts:
    """Charts side by side."""

    charts: tuple[Chart, ...]
    kind: ClassVar[str] = "charts"


Block = Paragraphs | Note | KeyValues | Code | ReportTable | Charts


@dataclass(frozen=True)
class ChapterSection:
    """Blocks below a heading."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Chapter:
    """Chapter of a page: a study, an analysis, or runs.

    Attributes:
        title: Name of the study, the analysis or the run, or the number of runs.
        kind: Kind of the content. `runs` is a comparison of several runs.
        sections: Sections of the chapter, the summary first.
    """

    title: str
    kind: Literal["study", "run", "runs", "analysis"]
    sections: tuple[ChapterSection, ...]


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: Title in the browser's tab.
        chapters: The chapters, in order.
        problems: Messages on runs, studies and analyses that cannot be shown.
        provenance: Version of this library, and the time of writing.
    """

    title: str
    chapters: tuple[Chapter, ...]
    problems: tuple[str, ...] = ()
    provenance: tuple[str, ...] = ()

    @property
    def charts(self) -> Iterator[Chart]:
        """All charts, in the order of the page."""
        for chapter in self.chapters:
            for chapter_section in chapter.sections:
                for block in chapter_section.blocks:
                    if isinstance(block, Charts):
                        yield from block.charts


def section(title: str, *blocks: Block | None) -> ChapterSection | None:
    """Return a section of the blocks with content, or None if there is no content."""
    filled = tuple(block for block in blocks if block is not None and not _is_empty(block))
    return ChapterSection(title, filled) if filled else None


def sections(*optional: ChapterSection | None) -> tuple[ChapterSection, ...]:
    """Return the sections without None."""
    return tuple(section for section in optional if section is not None)


def _is_empty(block: Block) -> bool:
    match block:
        case (
            Paragraphs(sentences=content)
            | KeyValues(pairs=content)
            | ReportTable(rows=content)
            | Charts(charts=content)
        ):
            return not content
        case _:
            return False
