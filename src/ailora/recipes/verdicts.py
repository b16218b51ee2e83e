"""A text task that the project makes itself, so that the demo needs no data: does the speaker like it or not?

A sentence speaks of one thing with a praising or a damning word, inside none, one or two negating phrases, and mentions
another thing beside it. The label is the word's tone, turned around by each negation; the other thing does not count.
Tones and negations are drawn independently, so that no word and no short phrase tells the label: it is their parity.
Validation and test use words that training never shows.
"""

from __future__ import annotations

import csv
import random
from pathlib import Path

_GOOD = "wonderful delicious brilliant charming superb delightful excellent gorgeous pleasant marvelous lovely splendid"
_BAD = "awful terrible dreadful horrible boring disgusting miserable ugly lousy annoying nasty dismal"
_THINGS = ["meal", "film", "concert", "hotel", "play", "speech", "garden", "trip", "lecture", "party"]
_SPEAKERS = ["my sister", "the critic", "our neighbor", "the guide", "an old friend", "the reporter"]
_PLAIN = [
    "{who} says that {what}",
    "{who} is sure that {what}",
    "everybody agrees that {what}",
    "it is a fact that {what}",
]
_NEGATING = [
    "{who} denies that {what}",
    "{who} never said that {what}",
    "nobody believes that {what}",
    "it is not true that {what}",
]
_ASIDES = ["although the {thing} was {tone}", "unlike the {tone} {thing}", "and the {thing} seemed {tone}"]
#: How often a sentence has no, one or two negations: even and odd counts are equally likely.
_NEGATIONS = (0, 1, 1, 2)


def write_verdicts(folder: Path, *, train: int, held_out: int, seed: int = 0) -> dict[str, Path]:
    """Write `train.tsv`, `validation.tsv` and `test.tsv` with the columns sentence and label.

    Args:
        folder: where the files go; made if needed.
        train: rows of the training file.
        held_out: rows of the validation file and of the test file.
        seed: the same seed gives the same files.

    Returns:
        The path of each split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    words = {"train": slice(None, 8), "validation": slice(8, None), "test": slice(8, None)}
    paths = {}
    for split, vocabulary in words.items():
        good, bad = _GOOD.split()[vocabulary], _BAD.split()[vocabulary]
        rows = [_sentence(rng, good, bad) for _ in range(train if split == "train" else held_out)]
        paths[split] = folder / f"{split}.tsv"
        with paths[split].open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
            writer.writerow(("sentence", "label"))
            writer.writerows(rows)
    return paths


def _sentence(rng: random.Random, good: list[str], bad: list[str]) -> tuple[str, str]:
    thing, other = rng.sample(_THINGS, 2)
    likes, likes_other, negations = rng.random() < 0.5, rng.random() < 0.5, rng.choice(_NEGATIONS)
    clause = f"the {thing} was {rng.choice(good if likes else bad)}"
    frames = [*rng.sample(_NEGATING, negations), *([rng.choice(_PLAIN)] if negations < 2 else [])]
    rng.shuffle(frames)
    speakers = rng.sample(_SPEAKERS, len(frames))
    for frame, speaker in zip(frames, speakers, strict=True):
        clause = frame.format(who=speaker, what=clause)
    aside = rng.choice(_ASIDES).format(thing=other, tone=rng.choice(good if likes_other else bad))
    label = "praise" if likes == (negations % 2 == 0) else "blame"
    return f"{clause[0].upper()}{clause[1:]}, {aside}.", label
