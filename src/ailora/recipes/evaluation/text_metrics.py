"""Metrics of generated texts against references, computed by sacrebleu, rouge-score and NLTK."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import nltk
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from ailora.errors import InputError

Texts = Sequence[str]
References = Sequence[Sequence[str]]

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


@dataclass(frozen=True)
class TextMetric:
    """Metric of texts, each against one reference or several.

    Attributes:
        score: function of the texts and of the references of each.
        larger_is_better: whether a larger score is better.
    """

    score: Callable[[Texts, References], float]
    larger_is_better: bool = True


def _corpus(metric: BLEU | CHRF | TER) -> Callable[[Texts, References], float]:
    """Return the score of a whole corpus, from 0 to 100."""

    def score(texts: Texts, references: References) -> float:
        # sacrebleu takes the first reference of every text, then the second, and so on; None where a text has fewer.
        count = max(len(refs) for refs in references)
        streams = [[refs[i] if i < len(refs) else None for refs in references] for i in range(count)]
        return metric.corpus_score(list(texts), streams).score  # type: ignore[arg-type]

    return score


def _rouge_l(texts: Texts, references: References) -> float:
    """Return 100 times the mean over texts of ROUGE-L's F-measure against the best reference."""
    scorer = RougeScorer(["rougeL"])
    pairs = zip(texts, references, strict=True)
    scores = [scorer.score_multi(list(refs), text)["rougeL"].fmeasure for text, refs in pairs]
    return 100 * sum(scores) / len(scores)


def _meteor(texts: Texts, references: References) -> float:
    """Return 100 times the mean METEOR of texts, whose words are split at blanks."""
    pairs = zip(texts, references, strict=True)
    scores = [meteor_score([ref.split() for ref in refs], text.split()) for text, refs in pairs]
    return 100 * sum(scores) / len(scores)


def _numeric_match(texts: Texts, references: References) -> float:
    """Return the percentage of texts whose final number equals a reference's, as GSM8K is scored."""
    hits = [
        (answer := find_final_number(text)) is not None and answer in [find_final_number(ref) for ref in refs]
        for text, refs in zip(texts, references, strict=True)
    ]
    return 100 * sum(hits) / len(hits)


def _exact_match(texts: Texts, references: References) -> float:
    """Return the percentage of texts that equal a reference, blanks at the ends aside."""
    hits = [text.strip() in [ref.strip() for ref in refs] for text, refs in zip(texts, references, strict=True)]
    return 100 * sum(hits) / len(hits)


def find_final_number(text: str) -> Decimal | None:
    """Find the answer of a worked solution.

    Returns:
        The first number after the last `####`, as GSM8K marks its answers, else the last number of the text; None if
        there is none.
    """
    _, mark, after = text.rpartition("####")
    numbers = _NUMBER.findall(after)
    if not numbers:
        return None
    try:
        # Not a float: 0.1 and 0.10 are equal, and long numbers keep their digits.
        return Decimal(numbers[0 if mark else -1].replace(",", "")).normalize()
    except InvalidOperation:
        return None


TEXT_METRICS: dict[str, TextMetric] = {
    "bleu": TextMetric(_corpus(BLEU())),
    "chrf": TextMetric(_corpus(CHRF())),
    "ter": TextMetric(_corpus(TER()), larger_is_better=False),
    "rouge_l": TextMetric(_rouge_l),
    "meteor": TextMetric(_meteor),
    "exact_match": TextMetric(_exact_match),
    "numeric_match": TextMetric(_numeric_match),
}


def validate_metric(name: str) -> None:
    """Validate that the data of a metric are installed.

    Raises:
        InputError: The metric is METEOR, and WordNet is not installed.
    """
    if name != "meteor":
        return
    try:
        nltk.data.find("corpora/wordnet.zip")
    except LookupError:
        raise InputError(
            "metric meteor needs WordNet, which is not on this machine: python -m nltk.downloader wordnet"
        ) from None


def score_texts(names: Sequence[str], texts: Texts, references: References) -> dict[str, float]:
    """Score generated texts.

    Args:
        names: names of `TEXT_METRICS`.
        texts: generated texts.
        references: references of each text, at least one.

    Returns:
        Score of each metric.
    """
    return {name: float(TEXT_METRICS[name].score(texts, references)) for name in names}
