"""The demo's task is hard for plain features and the same for everybody."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from ailora.recipes.demo_task import write_verdicts


def test_words_and_word_pairs_do_not_solve_it(tmp_path: Path) -> None:
    paths = write_verdicts(tmp_path, train=2000, held_out=1000)
    frames = {split: pd.read_csv(path, sep="\t") for split, path in paths.items()}
    model = make_pipeline(CountVectorizer(ngram_range=(1, 3)), LogisticRegression(max_iter=1000))
    model.fit(frames["train"].sentence, frames["train"].label)
    # Chance is 0.5; three standard errors of 1,000 coin flips are 0.05.
    assert model.score(frames["test"].sentence, frames["test"].label) < 0.6
    balance = (frames["train"].label == "praise").mean()
    assert 0.45 < balance < 0.55


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    made = [write_verdicts(tmp_path / name, train=20, held_out=5, seed=s) for name, s in (("a", 1), ("b", 1), ("c", 2))]
    texts = [{split: path.read_text() for split, path in paths.items()} for paths in made]
    assert texts[0] == texts[1] != texts[2]


def test_held_out_words_are_new(tmp_path: Path) -> None:
    paths = write_verdicts(tmp_path, train=500, held_out=100)
    words = {split: set(path.read_text().split()) for split, path in paths.items()}
    assert "awful" in words["train"]
    assert "awful" not in words["validation"] | words["test"]
