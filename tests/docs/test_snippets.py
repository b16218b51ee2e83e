"""What the pages say, done."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

import pytest

from ailora.cli import main
from tests.docs import pages
from tests.docs.pages import ROOT, Snippet

PAGES = pages.pages()
WITH_SNIPPETS = [page for page in PAGES if any(pages.snippets(page))]
#: Snippets that are not run, of all pages together: a growing number wants a reason.
MOST_NOT_RUN = 12


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# What torch says of a trainer with its usual settings on a machine without an accelerator.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
@pytest.mark.ci
@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=_name)
def test_the_snippets_of_a_page(page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = logging.getLogger("ailora")
    handlers, level = log.handlers[:], log.level
    for snippet in pages.snippets(page):
        try:
            if snippet.kind == "python":
                pages.run_python(snippet)
            elif snippet.kind == "yaml":
                pages.read_yaml(snippet, workplace)
            else:
                _run_commands(snippet, workplace, monkeypatch)
        except BaseException as error:
            error.add_note(f"in {snippet.place}")
            raise
        finally:
            log.handlers, log.level = handlers, level


def _run_commands(snippet: Snippet, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked = snippet.not_run is not None
    for words in pages.commands(snippet):
        arguments = pages.check_command(words, folder, marked=marked)
        if arguments is None or marked:
            continue
        monkeypatch.setattr(sys, "argv", ["ailora", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code, f"`{' '.join(words)}` ended with {stopped.value.code}"


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    """Sybil finds what a plain search finds, and no block hides in a language that nobody checks."""
    for page in PAGES:
        languages = pages.languages(page)
        assert set(languages) <= {*pages.KINDS, *pages.PLAIN}, _name(page)
        found = [snippet.kind for snippet in pages.snippets(page)]
        assert sorted(found) == sorted(language for language in languages if language in pages.KINDS), _name(page)


def test_few_snippets_are_not_run_and_each_says_why() -> None:
    marks = {_name(page): re.findall(r"<!-- *not run[^>]*-->", page.read_text(encoding="utf-8")) for page in PAGES}
    counted = [snippet.place for page in PAGES for snippet in pages.snippets(page) if snippet.not_run]
    assert len(counted) == sum(map(len, marks.values())), "a mark that stands above no snippet"
    assert len(counted) <= MOST_NOT_RUN, counted


@pytest.mark.parametrize(
    "line", ["ailora tarin run.yaml", "ailora plan builtin:minilm --ranks 8", "ailora train nowhere.yaml", "make demos"]
)
def test_wrong_commands_are_found(line: str, tmp_path: Path) -> None:
    words = line.split()
    with pytest.raises(BaseException, match=r"tarin|ranks|nowhere|demos"):
        pages.check_command(words, tmp_path, marked=False)


def test_paths_and_tests_that_pages_name_exist() -> None:
    """`tests/x.py::test_y`, `src/...`, `examples/...` in backticks, wherever they stand."""
    missing = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for path, _, name in re.findall(r"`((?:tests|src|docs|benchmarks|examples)/[\w./-]+\.\w+)(::(\w+))?`", text):
            file = ROOT / path
            if not file.is_file() or (name and f"def {name}(" not in file.read_text(encoding="utf-8")):
                missing.append(f"{_name(page)}: {path} {name}")
    assert not missing
