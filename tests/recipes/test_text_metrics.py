"""Scores of generated texts, against values known by hand and the libraries' own."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

import ailora
from ailora.recipes.evaluation import text_metrics
from ailora.recipes.evaluation.text_metrics import TEXT_METRICS, find_numeric_answer, score_texts, validate_metric

TEXTS = ["the red car is in the garden", "a cup stands here"]
REFERENCES = [["the red car is in the garden", "a red car"], ["there is a cup"]]
OFFLINE = [name for name in TEXT_METRICS if name not in ("meteor", "numeric_match")]


@pytest.mark.parametrize("name", OFFLINE)
def test_a_perfect_text_has_the_best_score(name: str) -> None:
    best = 100 if TEXT_METRICS[name].larger_is_better else 0
    assert score_texts([name], TEXTS, [[text] for text in TEXTS])[name] == pytest.approx(best)


def test_bleu_with_references_of_different_number_is_sacrebleus() -> None:
    streams = [["the red car is in the garden", "there is a cup"], ["a red car", None]]
    expected = sacrebleu.corpus_bleu(TEXTS, streams).score  # type: ignore[arg-type]
    assert score_texts(["bleu"], TEXTS, REFERENCES)["bleu"] == expected


def test_rouge_l_takes_the_best_reference() -> None:
    """'a cup' is shared with 'there is a cup': precision 2/4, recall 2/4."""
    assert score_texts(["rouge_l"], TEXTS, REFERENCES)["rouge_l"] == pytest.approx(100 * (1 + 0.5) / 2)


@given(st.lists(st.tuples(st.text(), st.lists(st.text(), min_size=1, max_size=3)), min_size=1, max_size=4))
def test_every_score_is_a_finite_number(pairs: list[tuple[str, list[str]]]) -> None:
    scores = score_texts([*OFFLINE, "numeric_match"], [t for t, _ in pairs], [r for _, r in pairs])
    assert all(math.isfinite(value) for value in scores.values())


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 = 7\n#### 7", "7"),
        ("so #### 1,234.50 dollars", "1234.5"),
        ("the answer is -0.50", "-0.5"),
        ("#### none", None),
        ("no number", None),
        ("first 3 then 4", "4"),
        ("", None),
    ],
)
def test_the_final_number_of_a_solution(text: str, number: str | None) -> None:
    assert find_numeric_answer(text) == (None if number is None else Decimal(number))


def test_numeric_match_compares_numbers() -> None:
    scores = score_texts(["numeric_match"], ["#### 1,000", "12", "x"], [["#### 1000"], ["#### 13"], ["#### 1"]])
    assert scores["numeric_match"] == pytest.approx(100 / 3)


def test_meteor_without_its_data_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise LookupError

    monkeypatch.setattr(text_metrics.nltk.data, "find", missing)
    with pytest.raises(ailora.InputError, match=r"needs WordNet.*nltk\.downloader wordnet"):
        validate_metric("meteor")


def test_meteor_finds_its_data_extracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpora" / "wordnet").mkdir(parents=True)
    monkeypatch.setattr(text_metrics.nltk.data, "path", [str(tmp_path)])
    validate_metric("meteor")
