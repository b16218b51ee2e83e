"""Synthetic classification task for the demo: does a sentence praise or blame its subject?

A sentence judges a subject with a word of praise or blame, in a phrase of affirmation or denial, and judges a second
thing in an aside. The label is the tone of the word, inverted by a denial; the aside is irrelevant. Tones and phrases
are drawn independently, so no word or short sequence of words predicts the label: linear models of words and word pairs
stay at chance. Validation and test data use judging words absent from the training data.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from ailora.atomic_io import write_text
from ailora.checkpoints.output_path import writing
from ailora.errors import InputError
from ailora.formatting import capitalize

_GOOD = "wonderful delicious brilliant charming superb delightful excellent gorgeous pleasant marvelous lovely splendid"
_BAD = "awful terrible dreadful horrible boring disgusting miserable ugly lousy annoying nasty dismal"
_THINGS = ["meal", "film", "concert", "hotel", "play", "speech", "garden", "trip", "lecture", "party"]
_SPEAKERS = ["my sister", "the critic", "our neighbor", "the guide", "an old friend", "the reporter"]
_AFFIRMING = [
    "{who} says that {what}",
    "{who} is sure that {what}",
    "everybody agrees that {what}",
    "it is a fact that {what}",
]
_DENYING = [
    "{who} denies that {what}",
    "{who} never said that {what}",
    "nobody believes that {what}",
    "it is not true that {what}",
]
_ASIDES = ["although the {thing} was {tone}", "unlike the {tone} {thing}", "and the {thing} seemed {tone}"]


def write_verdicts(folder: Path, *, train: int, held_out: int, seed: int = 0) -> dict[str, Path]:
    """Write `train.tsv`, `validation.tsv` and `test.tsv` with columns `sentence` and `label`.

    Args:
        folder: Folder to write to, created if missing.
        train: Number of training rows.
        held_out: Number of rows in the validation split, and in the test split.
        seed: Seed of the rows.

    Returns:
        Mapping from split to file.

    Raises:
        InputError: The folder is not writable, or holds files with these names and different content.
    """
    rng = random.Random(seed)
    # Of the 12 words of each tone, the first 8 are for training.
    word_slices = {"train": slice(None, 8), "validation": slice(8, None), "test": slice(8, None)}
    texts = {}
    for split, word_slice in word_slices.items():
        good, bad = _GOOD.split()[word_slice], _BAD.split()[word_slice]
        rows = [_make_sentence(rng, good, bad) for _ in range(train if split == "train" else held_out)]
        texts[folder / f"{split}.tsv"] = "".join("\t".join(row) + "\n" for row in (("sentence", "label"), *rows))
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            if not file.exists() and not file.is_symlink():
                write_text(file, text)
            # After a kill, files from the previous attempt have the same content.
            elif file.read_bytes() != text.encode():
                raise InputError(f"{file} exists with different content; choose a different output folder")
    return {file.stem: file for file in texts}


def _make_sentence(rng: random.Random, good: Sequence[str], bad: Sequence[str]) -> tuple[str, str]:
    """Return a random sentence and its label."""
    subject, distractor = rng.sample(_THINGS, 2)
    praises_subject, denies, praises_distractor = (rng.random() < 0.5 for _ in range(3))
    judgement = f"the {subject} was {rng.choice(good if praises_subject else bad)}"
    clause = rng.choice(_DENYING if denies else _AFFIRMING).format(who=rng.choice(_SPEAKERS), what=judgement)
    aside = rng.choice(_ASIDES).format(thing=distractor, tone=rng.choice(good if praises_distractor else bad))
    label = "praise" if praises_subject != denies else "blame"
    return f"{capitalize(clause)}, {aside}.", label
