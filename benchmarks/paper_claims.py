"""Claims of the paper, each judged by the recorded studies and analyses: confirmed, refuted, undecided or not run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from machine import RESULTS
from study_records import StudyRecord

from ailora.formatting import format_interval
from ailora.studies.comparison import BaselineComparison
from ailora.studies.study_design import StudyDesign


class Finding(StrEnum):
    """Result of testing a claim by measurements."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    UNDECIDED = "undecided"
    NOT_RUN = "not run"

    @classmethod
    def all_of(cls, findings: Iterable[Finding]) -> Finding:
        """Combine the findings on a claim's parts: refuted if any part is, else undecided unless all parts agree."""
        parts = {*findings}
        if cls.REFUTED in parts:
            return cls.REFUTED
        return next(iter(parts)) if len(parts) == 1 else cls.UNDECIDED if parts else cls.NOT_RUN


#: Verdict on the method that a claim calls better -> finding on the claim.
_OF_VERDICT = {
    "better": Finding.CONFIRMED,
    "better and equivalent": Finding.CONFIRMED,
    "worse": Finding.REFUTED,
    "worse and equivalent": Finding.REFUTED,
    # Any gain is within the margin, and does not matter.
    "equivalent": Finding.REFUTED,
    "undecided": Finding.UNDECIDED,
    None: Finding.NOT_RUN,
}


@dataclass(frozen=True)
class Claim:
    """A claim that a method is better than others.

    Attributes:
        place: Figure or table of the paper.
        text: The claim.
        method: Label of the method in the studies.
        others: Labels of the methods that the claimed method should beat.
        studies: Names of the studies that test the claim, `FILE` or `FILE-SCALE`.
        by_speed: Whether the claim is about steps to the same loss instead of scores.
    """

    place: str
    text: str
    method: str
    others: tuple[str, ...]
    studies: tuple[str, ...]
    by_speed: bool = False

    def judge(self, design: StudyDesign, record: StudyRecord) -> tuple[Finding, str]:
        """Judge the claim by a study, on every task and setting.

        Returns:
            The finding, and the numbers behind it as text.
        """
        parts = list(self._parts(design, record))
        return Finding.all_of(finding for finding, _ in parts), "; ".join(text for _, text in parts if text)

    def _parts(self, design: StudyDesign, record: StudyRecord) -> Iterator[tuple[Finding, str]]:
        for other in self.others:
            if other not in design.methods:
                continue
            config = design.config.model_copy(update={"baseline": other})
            comparison = record.compare(StudyDesign(config, to_run=False))
            for condition, against in comparison.against_baseline.items():
                if condition.method == self.method:
                    place = ", ".join(part for part in (condition.setting_label, other) if part)
                    yield _judge_speed(against, place) if self.by_speed else _judge_score(against, place)


def _judge_score(against: BaselineComparison, place: str) -> tuple[Finding, str]:
    if against.difference is None:
        return Finding.NOT_RUN, ""
    e, judged = against.difference.estimate, against.judgement
    numbers = f"{format_interval(e.mean, e.low, e.high, '+')} to {place}"
    if judged is not None and judged.equivalent:
        numbers += f", equivalent within {judged.margin:.3g}"
    return _OF_VERDICT[against.verdict], numbers


def _judge_speed(against: BaselineComparison, place: str) -> tuple[Finding, str]:
    time = against.time_to_loss
    if time is None:
        return Finding.NOT_RUN, ""
    share = "not reached" if time.share is None else f"{time.share:.2f} of the steps"
    finding = {True: Finding.CONFIRMED, False: Finding.REFUTED, None: Finding.UNDECIDED}[time.confirmed]
    return finding, f"{share}, to the loss of {place}"


_NLU = ("nlu-sst2-mpnet", "nlu-cola-mpnet", "nlu-small", "nlu-cola", "nlu")
_NLG = ("e2e-smollm2", "e2e-small", "gsm8k-small", "e2e", "gsm8k")
_PAIRS = tuple(f"Q {q}, V {v}" for q in ("random", "principal", "minor") for v in ("random", "principal", "minor"))
_PAPERS_PAIR = "Q principal, V minor"
#: Name of an analysis of directions -> its model, for readers.
ANALYSES = {"mpnet": "all-mpnet-base-v2 (109M)", "smollm2": "SmolLM2-135M-Instruct (4-bit weights)"}
_ANALYSIS_LINK = "[analysis](analysis.md#which-directions-does-fine-tuning-use)"
_NOT_ANALYSED = (f"**{Finding.NOT_RUN}**", "", _ANALYSIS_LINK)
_SPEED = ("nlu-sst2-mpnet", "nlu-cola-mpnet", "e2e-smollm2", "figure3")
_MATRICES = tuple(f"ailora {letters}" for letters in ("Q", "V", "Q+K", "Q+K+V", "Q+K+V+O", "all linear"))
CLAIMS = [
    Claim("NLU table", "AILoRA scores higher than LoRA", "ailora", ("lora",), _NLU),
    Claim("NLU table", "AILoRA scores higher than PiSSA and MiLoRA", "ailora", ("pissa", "milora"), _NLU),
    Claim("NLU table", "AILoRA scores higher than with exchanged bands", "ailora", ("reversed",), _NLU[2:]),
    Claim("NLG tables", "AILoRA is better than LoRA", "ailora", ("lora",), _NLG),
    Claim("NLG tables", "AILoRA is better than PiSSA and MiLoRA", "ailora", ("pissa", "milora"), _NLG),
    Claim("Figure 3", "AILoRA reaches LoRA's loss in fewer steps", "ailora", ("lora",), _SPEED, by_speed=True),
    Claim(
        "Figure 4",
        "a principal W^Q with a minor W^V is the best pair",
        _PAPERS_PAIR,
        tuple(pair for pair in _PAIRS if pair != _PAPERS_PAIR),
        ("figure4-mpnet", "figure4-small", "figure4"),
    ),
    Claim("Figure 5", "AILoRA is ahead of LoRA at every rank", "ailora", ("lora",), ("figure5-small", "figure5")),
    Claim(
        "matrices",
        "W^Q and W^V together are the best choice",
        "ailora Q+V",
        _MATRICES,
        ("matrices-small", "matrices"),
    ),
]


def claims_table(studies: Sequence[tuple[str, str, str, tuple[StudyDesign, StudyRecord] | None]]) -> str:
    """Write the table of all claims, a row for each study or analysis that tests it.

    Args:
        studies: Name, model and link of each study, with its design and record, or None if it was not run.
    """
    by_name = {name: study for name, *study in studies}
    rows = [*_analysis_rows()]
    for claim in CLAIMS:
        for name in claim.studies:
            model, link, run = by_name[name]
            finding, numbers = claim.judge(*run) if run else (Finding.NOT_RUN, "")
            where = link if run else f"`{name}`"
            rows.append([claim.place, claim.text, model, f"**{finding}**", _shorten(numbers), where])
    heads = ["in the paper", "claim", "model", "finding", "numbers", "where"]
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
    return "\n".join(lines)


def _analysis_rows() -> Iterator[list[str]]:
    """Read the observations of the paper's Figure 1 from the recorded analyses."""
    for name, model in ANALYSES.items():
        file = RESULTS / f"directions-{name}.json"
        if not file.exists():
            yield ["Figure 1", "both observations, and the directions of updates", model, *_NOT_ANALYSED]
            continue
        for claim in json.loads(file.read_text(encoding="utf-8"))["claims"]:
            yield ["Figure 1", claim["text"], model, f"**{claim['finding']}**", claim["numbers"], _ANALYSIS_LINK]


def _shorten(numbers: str) -> str:
    """Keep the first three of the numbers. The linked page has all."""
    parts = numbers.split("; ")
    return "; ".join(parts[:3]) + (f"; {len(parts) - 3} more" if len(parts) > 3 else "")
