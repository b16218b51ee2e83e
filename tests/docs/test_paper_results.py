"""Pages of the paper's studies: each claim is tested by a study, and each finding follows from the verdicts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

# Their imports take seconds.
pytestmark = pytest.mark.ci

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script that writes the pages, with its neighbours on the path."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import paper_studies

    yield paper_studies
    for name in ("paper_studies", "paper_claims", "doc_pages", "sequential_verdicts", "study_records", "machine"):
        sys.modules.pop(name, None)


def test_every_claim_names_studies_that_there_are(pages: ModuleType) -> None:
    import paper_claims

    names = {study.name for study in pages.STUDIES}
    assert {name for claim in paper_claims.CLAIMS for name in claim.studies} <= names


def test_every_study_of_the_pages_is_a_study_file(pages: ModuleType) -> None:
    outputs = [study.config().name for study in pages.STUDIES]
    assert len({*outputs}) == len(outputs)


@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        ("confirmed confirmed", "confirmed"),
        ("confirmed undecided", "undecided"),
        ("confirmed refuted undecided", "refuted"),
        ("confirmed not_run", "undecided"),
        ("not_run not_run", "not_run"),
        ("", "not_run"),
    ],
)
def test_a_claim_must_hold_for_each_of_its_parts(pages: ModuleType, parts: str, whole: str) -> None:
    from paper_claims import Finding

    assert Finding.all_of(Finding[part.upper()] for part in parts.split()) is Finding[whole.upper()]


@pytest.mark.parametrize(
    ("gain", "finding", "numbers"),
    [
        (0.0, "refuted", ", equivalent within 0.01"),
        (0.005, "confirmed", ", equivalent within 0.01"),
        (0.05, "confirmed", ""),
        (-0.05, "refuted", ""),
    ],
)
def test_a_method_that_is_equivalent_refutes_a_gain_beyond_the_margin(
    pages: ModuleType, gain: float, finding: str, numbers: str
) -> None:
    from paper_claims import Claim
    from study_records import StudyRecord

    from tests.studies.sample_trials import make_design, outcome, ran

    design = make_design()
    trials = ran(
        design,
        lambda spec: outcome(0.5 + (spec.condition.method == "ailora") * (gain + 0.001 * (spec.seed - 2))),
    )
    claim = Claim("a table", "AILoRA scores higher than LoRA", "ailora", ("lora",), ("study",))
    found, text = claim.judge(design, StudyRecord({}, "lora", trials, {}, {}))
    assert found.value == finding
    assert text.endswith(f" to lora{numbers}")


def test_only_what_stands_between_the_marks_is_replaced(pages: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    begin, end = "<!-- claims: made by benchmarks/paper_studies.py -->", "<!-- end of claims -->"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    pages.replace_between(page, "claims", "paper_studies.py", "new")
    assert page.read_text() == f"before\n{begin}\n\nnew\n\n{end}\nafter\n"
    with pytest.raises(SystemExit, match="lacks"):
        pages.replace_between(page, "studies", "paper_studies.py", "new")


def test_a_record_keeps_how_certain_the_rates_are(
    pages: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import study_records

    from ailora.studies.study_design import StudyDesign
    from tests.report.sample_studies import plausible, stored, study_file

    file = study_file(tmp_path, methods=["lora", "ailora"], seeds=[0, 1], name="recorded")
    storage, design = stored(file, lambda spec: plausible(spec, evaluations=1))
    storage.close()
    monkeypatch.setattr(study_records, "FOLDER", tmp_path / "records")
    study_records.record_study(tmp_path / "study")
    record = study_records.read_record("recorded")
    rates = record.compare(design).rate_certainties
    assert {condition.method: certainty.best for condition, certainty in rates.items()} == {
        "lora": 1e-3,
        "ailora": 1e-3,
    }
    assert rates == record.rate_certainties
    alone = StudyDesign(design.config.model_copy(update={"methods": ["lora"]}), to_run=False)
    assert [condition.method for condition in record.compare(alone).rate_certainties] == ["lora"]


def test_the_table_of_simulated_verdicts_is_that_of_the_recorded_figures(pages: ModuleType) -> None:
    import sequential_verdicts
    from machine import RESULTS

    record = json.loads((RESULTS / "sequential_verdicts.json").read_text(encoding="utf-8"))
    assert sequential_verdicts.scenario_table(record["scenarios"]) in (ROOT / "docs/studies.md").read_text("utf-8")
    # The goal for each family, within the error of the simulation.
    limits = [row[f"wrong_{kind}_upper"] for row in record["scenarios"] for kind in ("difference", "equivalence")]
    assert max(limits) <= 0.055


def test_a_recorded_study_gives_its_verdicts_and_bootstrap_intervals(pages: ModuleType) -> None:
    from ailora.studies.study_design import StudyDesign
    from ailora.studies.trial import Condition

    study = next(study for study in pages.STUDIES if study.name == "nlu-small")
    record = pages.read_record("nlu-small")
    design = StudyDesign(study.config(), to_run=False)
    against = record.compare(design).against_baseline[Condition("sst2", "ailora")]
    # What the page says since the study ran.
    assert against.difference.estimate.mean == pytest.approx(-0.0087, abs=5e-5)
    assert (against.bootstrap.low, against.bootstrap.high) == pytest.approx((-0.0348, 0.0155), abs=5e-5)
    other = StudyDesign(study.config().model_copy(update={"baseline": "pissa"}), to_run=False)
    assert record.compare(other).against_baseline[Condition("sst2", "ailora")].bootstrap is None
