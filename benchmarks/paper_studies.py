"""Studies of `examples/paper`: recorded in `results/studies`, shown in `docs/results.md`, judged in the paper map.

    ailora study run examples/paper/nlu.yaml --scale small --workers 2      # likewise the others, in STUDIES
    python benchmarks/paper_studies.py out/paper/nlu-small                  # record folders, finished or not
    python benchmarks/paper_studies.py                                      # only write the pages again

Runs nothing. Pages and figures follow from the records alone: a study without one is shown as not run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doc_pages import DOCS, replace_between
from paper_claims import claims_table
from study_records import read_record, record_study

from ailora.formatting import join_names, pluralize
from ailora.plots.chart_spec import Chart
from ailora.plots.matplotlib_backend import save_figure
from ailora.plots.study_charts import rate_charts, shared_rate_charts, varied_charts, varied_key
from ailora.plots.verdict_charts import forest_charts
from ailora.report.init_pair_heatmap import init_pair_heatmaps
from ailora.studies.comparison import Comparison
from ailora.studies.study_config import StudyConfig, load_study_config
from ailora.studies.study_design import StudyDesign
from ailora.studies.summary import summarize

ROOT = Path(__file__).resolve().parents[1]
_SCRIPT = Path(__file__).name
#: Methods up to which a chart with a line for each can be read.
_MAX_LINES = 8


@dataclass(frozen=True)
class PaperStudy:
    """A study of `examples/paper`.

    Attributes:
        file: Name of the study file.
        scale: Set of keys of the study file; None for the paper's size.
        model: Model, for readers.
        title: Subject, and the heading on the page.
    """

    file: str
    scale: str | None
    model: str
    title: str

    @property
    def name(self) -> str:
        return self.file if self.scale is None else f"{self.file}-{self.scale}"

    @property
    def link(self) -> str:
        return f"[results](results.md#{anchor(self.title)})"

    @property
    def command(self) -> str:
        scale = f" --scale {self.scale}" if self.scale else ""
        return f"ailora study run examples/paper/{self.file}.yaml{scale} --workers 2"

    def config(self) -> StudyConfig:
        return load_study_config(ROOT / "examples" / "paper" / f"{self.file}.yaml", scale=self.scale)


MPNET, SMOLLM, MINILM = "all-mpnet-base-v2 (109M)", "SmolLM2-135M-Instruct (4-bit weights)", "MiniLM (22M)"
PAPER_SIZE = "roberta-large (355M)"
LLAMA, PICO = "Llama-3.2-1B", "a Llama of 5M parameters"
STUDIES = [
    PaperStudy("nlu", "sst2-mpnet", MPNET, "SST-2 on all-mpnet-base-v2"),
    PaperStudy("nlu", "cola-mpnet", MPNET, "CoLA on all-mpnet-base-v2"),
    PaperStudy("e2e", "smollm2", SMOLLM, "E2E on SmolLM2-135M"),
    PaperStudy("e2e", "smollm2-texts", SMOLLM, "E2E on SmolLM2-135M: generated texts"),
    PaperStudy("figure4", "mpnet", MPNET, "Figure 4 on all-mpnet-base-v2: pairs of inits for W^Q and W^V"),
    PaperStudy("nlu", "small", MINILM, "SST-2, five inits"),
    PaperStudy("figure4", "small", MINILM, "Figure 4: every pair of inits for W^Q and W^V, and each alone"),
    PaperStudy("figure5", "small", MINILM, "Figure 5: ranks"),
    PaperStudy("nlu", "cola", MINILM, "CoLA, five inits"),
    PaperStudy("e2e", "small", PICO, "E2E on a small Llama"),
    PaperStudy("matrices", "small", MINILM, "Which matrices"),
    PaperStudy("gsm8k", "small", PICO, "GSM8K on a small Llama"),
    PaperStudy("nlu", None, PAPER_SIZE, "GLUE at the paper's size"),
    PaperStudy("figure3", None, PAPER_SIZE, "Figure 3 at the paper's size"),
    PaperStudy("figure4", None, PAPER_SIZE, "Figure 4 at the paper's size"),
    PaperStudy("figure5", None, PAPER_SIZE, "Figure 5 at the paper's size"),
    PaperStudy("matrices", None, PAPER_SIZE, "Which matrices, at the paper's size"),
    PaperStudy("e2e", None, LLAMA, "E2E at the paper's size"),
    PaperStudy("gsm8k", None, LLAMA, "GSM8K at the paper's size"),
]


def main() -> None:
    for folder in sys.argv[1:]:
        print("recorded", record_study(Path(folder)))
    runs = {}
    for study in STUDIES:
        config = study.config()
        if record := read_record(config.name or ""):
            # Only of what was run: the design of a study at the paper's size needs its models.
            runs[study] = StudyDesign(config, to_run=False), record
    compared = {study: record.compare(design) for study, (design, record) in runs.items()}
    chapters = [chapter(study, comparison, runs[study][1].machine) for study, comparison in compared.items()]
    overview = "\n".join(_overview(compared))
    replace_between(DOCS / "results.md", "studies", _SCRIPT, "\n\n".join([overview, *chapters]))
    claims = claims_table([(study.name, study.model, study.link, runs.get(study)) for study in STUDIES])
    replace_between(DOCS / "paper_map.md", "claims", _SCRIPT, claims)


def _overview(compared: dict[PaperStudy, Comparison]) -> Iterator[str]:
    """List all studies, those that were not run as well."""
    yield "| study | model | seeds | trials | |"
    yield "| --- | --- | --- | --- | --- |"
    for study in STUDIES:
        comparison = compared.get(study)
        if comparison is None:
            yield f"| {study.title} | {study.model} | | | not run |"
            continue
        done, n_open = count_trials(comparison)
        state = "complete" if not n_open else "partial"
        yield (
            f"| [{study.title}](#{anchor(study.title)}) | {study.model} | {_seeds(comparison)} | {done} of "
            f"{done + n_open} | {state} |"
        )


def count_trials(comparison: Comparison) -> tuple[int, int]:
    """Return the number of trials that ended, and of those that are known to be missing."""
    results = comparison.results.values()
    n_open = sum(result.n_open for result in results)
    return sum(sum(result.status_counts.values()) for result in results) - n_open, n_open


def anchor(title: str) -> str:
    """Return the anchor of a heading, as Markdown renderers make it."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def chapter(study: PaperStudy, comparison: Comparison, machine: Mapping[str, Any]) -> str:
    """Write the chapter of a study: model, seeds, state, sentences, figure and tables."""
    summary = summarize(comparison)
    done, n_open = count_trials(comparison)
    state = f"**Partial: {done} of {pluralize(done + n_open, 'trial')}.** " if n_open else ""
    lines = [f"## {study.title}", "", f"`{study.command}`", ""]
    lines += [f"{state}Model: {study.model}. Seeds at each best rate: {_seeds(comparison)}. {_data(comparison)}"]
    lines += [f"Machine: {machine['accelerator'] or pluralize(machine['cores'], 'core') + ' without a GPU'}.", ""]
    lines += [f"- {sentence}" for sentence in summary.sentences]
    if charts := list(_charts(comparison)):
        name = f"results-{comparison.design.config.name}.svg"
        save_figure(charts, DOCS / "images" / name, title=f"{study.title}: {study.model}")
        captions = " ".join(dict.fromkeys(chart.caption for chart in charts))
        lines += ["", f"![{study.title}: {join_names(chart.title for chart in charts)}](images/{name})", "", captions]
    return "\n".join([*lines, "", *(table.to_markdown() for table in summary.tables)]).strip()


def _charts(comparison: Comparison) -> Iterator[Chart]:
    """Yield a figure's panels: verdicts; then ranks, pairs of inits, or scores at all rates and at shared ones."""
    yield from forest_charts(comparison)
    if varied_key(comparison) is not None:
        yield from varied_charts(comparison)
    elif len(comparison.design.methods) > _MAX_LINES:
        yield from init_pair_heatmaps(comparison)
    else:
        yield from rate_charts(comparison)
        yield from shared_rate_charts(comparison)


def _seeds(comparison: Comparison) -> str:
    counts = sorted({len(result.at_best) for result in comparison.results.values() if result.at_best})
    return " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1]))) if counts else "none"


def _data(comparison: Comparison) -> str:
    """Name the data of a study, and their size where it is limited."""
    design = comparison.design
    config = design.base_config(design.conditions[0])
    train, validation = config.data.max_train_samples, config.data.max_validation_samples
    size = f"{train:,} training rows" if train else "all training rows"
    choice = f"{validation:,} validation rows" if validation else "all validation rows"
    return f"Trained on {size}; the rate is chosen on {choice}."


if __name__ == "__main__":
    main()
