"""Scores of generated texts against references, computed by sacrebleu, rouge-score and NLTK."""

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
    """A score of texts, each against one reference or several.

    Attributes:
        score: (texts, references of each) -> score.
        larger_is_better: whether it is.
    """

    score: Callable[[Texts, References], float]
    larger_is_better: bool = True


def _corpus(metric: BLEU | CHRF | TER) -> Callable[[Texts, References], float]:
    """A score of the whole corpus from 0 to 100. sacrebleu wants the first reference of every text, the second, ..."""

    def score(texts: Texts, references: References) -> float:
        most = max(len(each) for each in references)
        streams = [[each[i] if i < len(each) else None for each in references] for i in range(most)]
        return metric.corpus_score(list(texts), streams).score  # type: ignore[arg-type]

    return score


def _rouge_l(texts: Texts, references: References) -> float:
    """The mean over texts of the F-measure of the longest common subsequence with the best reference, times 100."""
    scorer = RougeScorer(["rougeL"])
    pairs = zip(texts, references, strict=True)
    scores = [scorer.score_multi(list(refs), text)["rougeL"].fmeasure for text, refs in pairs]
    return 100 * sum(scores) / len(scores)


def _meteor(texts: Texts, references: References) -> float:
    """The mean over texts, times 100, of words split at blanks."""
    pairs = zip(texts, references, strict=True)
    scores = [meteor_score([ref.split() for ref in refs], text.split()) for text, refs in pairs]
    return 100 * sum(scores) / len(scores)


def _numeric_match(texts: Texts, references: References) -> float:
    """The share of texts, in percent, whose answer is a number equal to that of a reference (GSM8K's score)."""
    hits = [
        (answer := final_number(text)) is not None and answer in [final_number(ref) for ref in refs]
        for text, refs in zip(texts, references, strict=True)
    ]
    return 100 * sum(hits) / len(hits)


def _exact_match(texts: Texts, references: References) -> float:
    """The share of texts, in percent, that equal a reference, blanks at the ends aside."""
    hits = [text.strip() in [ref.strip() for ref in refs] for text, refs in zip(texts, references, strict=True)]
    return 100 * sum(hits) / len(hits)


def final_number(text: str) -> Decimal | None:
    """The answer of a worked solution: the first number after the last `####`, else the last one; None: no number."""
    _, mark, after = text.rpartition("####")
    found = _NUMBER.findall(after)
    if not found:
        return None
    try:
        return Decimal(found[0 if mark else -1].replace(",", "")).normalize()
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
    """Refuse a metric whose data are not on this machine.

    Raises:
        InputError: METEOR without WordNet.
    """
    if name != "meteor":
        return
    try:
        nltk.data.find("corpora/wordnet.zip")
    except LookupError:
        raise InputError(
            "metric meteor needs WordNet, which is not on this machine: python -m nltk.downloader wordnet"
        ) from None


def text_scores(names: Sequence[str], texts: Texts, references: References) -> dict[str, float]:
    """The named scores of generated texts.

    Args:
        names: of `TEXT_METRICS`.
        texts: what was generated.
        references: one or several for each text.
    """
    return {name: float(TEXT_METRICS[name].score(texts, references)) for name in names}
