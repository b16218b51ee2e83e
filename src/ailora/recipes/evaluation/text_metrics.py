"""Metrics that compare generated texts with references, mostly from sacrebleu, rouge-score and NLTK."""

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
    """Metric of generated texts against references.

    Attributes:
        score: Function (texts, references of each text) -> score. Each text has at least one reference.
        larger_is_better: Whether larger scores are better.
    """

    score: Callable[[Texts, References], float]
    larger_is_better: bool = True


def _make_corpus_score(metric: BLEU | CHRF | TER) -> Callable[[Texts, References], float]:
    """Return a function that scores a corpus by a metric of sacrebleu, in percent."""

    def score(texts: Texts, references: References) -> float:
        # sacrebleu expects the first references of all texts, then all second references, and so on. None marks a
        # missing reference.
        max_references = max(len(refs) for refs in references)
        streams = [[refs[i] if i < len(refs) else None for refs in references] for i in range(max_references)]
        return metric.corpus_score(list(texts), streams).score  # type: ignore[arg-type]

    return score


def _compute_rouge_l(texts: Texts, references: References) -> float:
    """Return the F-measure of ROUGE-L against the best reference, averaged over texts, in percent."""
    scorer = RougeScorer(["rougeL"])
    pairs = zip(texts, references, strict=True)
    scores = [scorer.score_multi(list(refs), text)["rougeL"].fmeasure for text, refs in pairs]
    return 100 * sum(scores) / len(scores)


def _compute_meteor(texts: Texts, references: References) -> float:
    """Return METEOR with words split at whitespace, averaged over texts, in percent."""
    pairs = zip(texts, references, strict=True)
    scores = [meteor_score([ref.split() for ref in refs], text.split()) for text, refs in pairs]
    return 100 * sum(scores) / len(scores)


def _compute_numeric_match(texts: Texts, references: References) -> float:
    """Return the percentage of texts whose numeric answer equals that of a reference, as GSM8K is scored."""
    hits = [
        (answer := find_numeric_answer(text)) is not None and answer in [find_numeric_answer(ref) for ref in refs]
        for text, refs in zip(texts, references, strict=True)
    ]
    return 100 * sum(hits) / len(hits)


def _compute_exact_match(texts: Texts, references: References) -> float:
    """Return the percentage of texts that equal a reference, apart from leading and trailing whitespace."""
    hits = [text.strip() in [ref.strip() for ref in refs] for text, refs in zip(texts, references, strict=True)]
    return 100 * sum(hits) / len(hits)


def find_numeric_answer(text: str) -> Decimal | None:
    """Find the numeric answer in a worked solution.

    Returns:
        The first number after the last `####`, which marks the answers of GSM8K. Without such a mark, the last number
        in the text. None if there is no number, or none after the mark.
    """
    # Without a mark, `after` is the whole text.
    _, mark, after = text.rpartition("####")
    numbers = _NUMBER.findall(after)
    if not numbers:
        return None
    try:
        # Unlike a float, a Decimal keeps all digits of a long number.
        return Decimal(numbers[0 if mark else -1].replace(",", ""))
    except InvalidOperation:
        return None


TEXT_METRICS: dict[str, TextMetric] = {
    "bleu": TextMetric(_make_corpus_score(BLEU())),
    "chrf": TextMetric(_make_corpus_score(CHRF())),
    "ter": TextMetric(_make_corpus_score(TER()), larger_is_better=False),
    "rouge_l": TextMetric(_compute_rouge_l),
    "meteor": TextMetric(_compute_meteor),
    "exact_match": TextMetric(_compute_exact_match),
    "numeric_match": TextMetric(_compute_numeric_match),
}


def validate_metric(name: str) -> None:
    """Validate that the data needed by a metric are installed.

    Raises:
        InputError: The metric is METEOR, and WordNet is not installed.
    """
    # NLTK downloads an archive and reads it as it is, but also reads the folder if the archive was extracted.
    if name == "meteor" and not any(map(_is_installed, ("corpora/wordnet.zip", "corpora/wordnet"))):
        raise InputError("metric meteor needs WordNet, which is not installed; run: python -m nltk.downloader wordnet")


def _is_installed(resource: str) -> bool:
    """Return whether NLTK finds a resource."""
    try:
        nltk.data.find(resource)
    except LookupError:
        return False
    return True


def score_texts(names: Sequence[str], texts: Texts, references: References) -> dict[str, float]:
    """Score generated texts.

    Args:
        names: Metrics to compute, keys of `TEXT_METRICS`.
        texts: Generated texts.
        references: References of each text; at least one per text.

    Returns:
        Score by name of the metric.
    """
    return {name: float(TEXT_METRICS[name].score(texts, references)) for name in names}
