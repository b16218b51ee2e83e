"""Regular expressions over module names have one time limit, wherever they come from."""

from __future__ import annotations

import time

import pytest
from transformers import BertConfig, BertModel

from ailora import make_plan
from ailora.errors import InputError
from ailora.module_pattern import ModulePatterns

#: Exponential in the length of a name: two dozen repetitions would take minutes.
_HOSTILE = r"(.|..)*\d\d\d"


@pytest.fixture(scope="module")
def bert() -> BertModel:
    return BertModel(BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2))


@pytest.mark.parametrize(
    "options",
    [
        {"role_names": {_HOSTILE: "query"}},
        {"modules": _HOSTILE},
        {"rank": {_HOSTILE: 4}},
        {"alpha": {_HOSTILE: 4}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_pattern_of_a_configuration_that_never_ends_is_refused(bert: BertModel, options: dict[str, object]) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match=rf"{next(iter(options))}.*exceeds the time limit of 1 s"):
        make_plan(bert, **options)  # type: ignore[arg-type]
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("pattern", ["(((a{100}){100}){100}){100}", "a{100000000}", "x" * 300_000, "(" * 5000, None, 5])
def test_a_pattern_that_would_fill_the_memory_is_not_compiled(pattern: object) -> None:
    with pytest.raises(InputError, match=r"here: .* is not a regular expression"):
        ModulePatterns("here").search(pattern, "module")


@pytest.mark.parametrize(("pattern", "name"), [("a{}", "a{}"), ("a{,}", "aaa")])
def test_braces_without_a_number_are_read_as_regex_reads_them(pattern: str, name: str) -> None:
    assert ModulePatterns("here").fullmatch(pattern, name)


def test_the_limit_is_one_for_all_patterns_of_a_configuration() -> None:
    patterns = ModulePatterns("here")

    def search_many() -> None:
        for number in range(1000):
            patterns.search(rf"{_HOSTILE}|{number}", "a" * 22)

    with pytest.raises(InputError, match="for all patterns together"):
        search_many()


def test_ordinary_searches_do_not_count_however_many_they_are() -> None:
    patterns = ModulePatterns("here")
    assert all(patterns.search(rf"layers\.{number}\.", f"model.layers.{number}.q_proj") for number in range(300))
    assert patterns.fullmatch("q|v", "q")
    assert not patterns.fullmatch("q|v", "qv")
