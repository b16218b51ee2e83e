"""What a page is made of, before anybody says how it looks: texts, tables and charts in sections.

Everything here is plain text. What is markup is decided in one place, the template, which escapes all of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from ailora.plots.chart_spec import Chart

_NUMBER = re.compile(r"\[?[-+]?[0-9][0-9,]*\.?[0-9]*(e[-+]?[0-9]+)?(?![0-9A-Za-z.:-])", re.IGNORECASE)
#: What a cell holds where there is nothing.
MISSING = ("", "-")
#: Words that stand among numbers.
_NO_NUMBER = (*MISSING, "baseline", "not reached", "not finite", "not a number", "infinite", "minus infinite")


@dataclass(frozen=True)
class Words:
    """Sentences.

    Attributes:
        sentences: what is said.
        listed: as a list; else a paragraph each.
        collapsed: what stands above a list that is closed until somebody opens it; empty: it is open.
    """

    sentences: tuple[str, ...]
    listed: bool = False
    collapsed: str = ""
    kind: ClassVar[str] = "words"


@dataclass(frozen=True)
class Note:
    """Something that the reader must know before believing the rest: a part that is missing, or damaged."""

    text: str
    level: Literal["note", "error"] = "note"
    kind: ClassVar[str] = "note"


@dataclass(frozen=True)
class Facts:
    """A few figures to see at a glance: (what, figure)."""

    pairs: tuple[tuple[str, str], ...]
    kind: ClassVar[str] = "facts"


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
        title: what it shows.
        columns: their heads.
        rows: a text for each column.
        notes: what a reader needs to know, below it.
        wrapped: whether cells hold long texts, which are broken into lines.
        collapsed: whether it is closed until somebody opens it.
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
        """Of each column, whether its cells are numbers, by which it is then sorted."""
        columns = ([row[i] for row in self.rows if row[i] not in _NO_NUMBER] for i in range(len(self.columns)))
        return tuple(bool(cells) and all(map(_NUMBER.match, cells)) for cells in columns)


@dataclass(frozen=True)
class Charts:
    """Charts that stand side by side."""

    charts: tuple[Chart, ...]
    kind: ClassVar[str] = "charts"


Block = Words | Note | Facts | Code | Table | Charts


@dataclass(frozen=True)
class Section:
    """Blocks below a heading."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Part:
    """A study, some runs, or an analysis.

    Attributes:
        title: its name.
        sort: what it is, in a word.
        sections: of which the first says it all in words.
    """

    title: str
    sort: Literal["study", "run", "runs", "analysis"]
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: as the browser's tab shows it.
        parts: what it is about.
        problems: arguments that could not be shown, each with the reason.
        made: with what, and when.
    """

    title: str
    parts: tuple[Part, ...]
    problems: tuple[str, ...] = ()
    made: tuple[str, ...] = field(default=())

    @property
    def charts(self) -> Iterator[Chart]:
        """All charts, in the order of the page."""
        for part in self.parts:
            for section in part.sections:
                for block in section.blocks:
                    if isinstance(block, Charts):
                        yield from block.charts


def section(title: str, *blocks: Block | None) -> Section | None:
    """A section of the blocks that have something to show; None: there is none."""
    shown = tuple(block for block in blocks if block is not None and not _empty(block))
    return Section(title, shown) if shown else None


def sections(*made: Section | None) -> tuple[Section, ...]:
    """Those that there are."""
    return tuple(one for one in made if one is not None)


def _empty(block: Block) -> bool:
    match block:
        case Words():
            return not block.sentences
        case Facts():
            return not block.pairs
        case Table():
            return not block.rows
        case Charts():
            return not block.charts
        case _:
            return False
