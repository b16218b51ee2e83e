"""The small studies of `examples/paper`, as `docs/results.md` and `benchmarks/results/studies.json`.

    ailora study run examples/paper/nlu.yaml --scale small --workers 2      # likewise the others, in STUDIES
    python benchmarks/paper_studies.py

Runs nothing. A study that is not in its storage here keeps what an earlier one left on the page; one that has not ended
is shown as far as it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from machine import describe

from ailora.errors import InputError
from ailora.studies.comparison import compare
from ailora.studies.study import load_study, trial_frame
from ailora.studies.study_config import load_study_config
from ailora.studies.summary import summarize

ROOT = Path(__file__).resolve().parents[1]
STUDIES = [
    ("nlu", "small", "SST-2, five inits"),
    ("figure4", "small", "Figure 4: every pair of inits for W^Q and W^V, and each alone"),
    ("figure5", "small", "Figure 5: ranks"),
    ("nlu", "cola", "CoLA, five inits"),
    ("e2e", "small", "E2E on a small Llama"),
]


MARK = "<!-- made by benchmarks/paper_studies.py -->\n"


def main() -> None:
    page, kept = ROOT / "docs" / "results.md", ROOT / "benchmarks/results/studies.json"
    head, _, made = page.read_text(encoding="utf-8").partition(MARK)
    earlier = {text.partition("\n")[0]: f"## {text.strip()}\n" for text in made.split("\n## ")[1:]}
    pages, numbers = [], json.loads(kept.read_text(encoding="utf-8"))["studies"]
    for name, scale, title in STUDIES:
        file = ROOT / "examples" / "paper" / f"{name}.yaml"
        try:
            storage, design = load_study(load_study_config(file, scale=scale))
        except InputError as error:
            print(f"{name} {scale} stays as it was: {error}")
            pages += [earlier[title]] if title in earlier else []
            continue
        comparison = compare(design.keys.matching_trials(storage.trials()), design)
        command = f"ailora study run examples/paper/{name}.yaml --scale {scale} --workers 2"
        pages.append(summarize(comparison).to_markdown(title).replace("\n\n", f"\n\n`{command}`\n\n", 1))
        numbers[f"{name}-{scale}"] = comparison.to_dict() | {"trials": trials(trial_frame(storage, design))}
    kept.write_text(json.dumps({"machine": describe(), "studies": numbers}, indent=1) + "\n", encoding="utf-8")
    page.write_text(head + MARK + "\n" + "\n".join(pages), encoding="utf-8")


def trials(rows: Any) -> list[dict[str, Any]]:
    """The table of trials without what is only of this machine."""
    kept = rows.drop(columns=["key", "folder", "max_steps"]).round(6)
    return json.loads(kept.to_json(orient="records"))


if __name__ == "__main__":
    main()
