"""Compare two runs of a study: how far apart does the same trial end on two machines?

    python benchmarks/replicates.py out/paper/nlu-cola-mpnet

The folder's study is compared, finished or not, with its record in `results/studies`, trial by trial: the same method,
learning rate and seed. `results/replicates-NAME.json` has the pairs, and the differences of the trials that learned on
at least one machine. Only for studies by the Matthews correlation, which is 0 for a model that has learned nothing.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from machine import write_results
from study_records import read_machine, read_record

from ailora.report.inputs import find_studies

METRIC = "matthews_correlation"
#: Score up to which a trial counts as one that has learned nothing.
LEARNED = 0.2


def compare(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the name of a study, and the pairs of scores of its trials here and in its record."""
    (load,) = find_studies(folder, None)
    storage, design = load()
    record = read_record(storage.name)
    if record is None:
        raise SystemExit(f"results/studies has no record of {storage.name}")
    recorded = {trial.spec: trial.result for trial in record.trials if trial.result}
    pairs: list[dict[str, Any]] = []
    for trial in storage.trials():
        here, there = trial.result, recorded.get(trial.spec)
        if here is None or there is None:
            continue
        metric = design.metric(trial.spec.condition)
        if metric != METRIC:
            raise SystemExit(
                f"{storage.name} is compared by {metric}, and 0 means that nothing was learned for {METRIC}"
            )
        split = "test" if "test" in here.metrics and "test" in there.metrics else "validation"
        scores = {"folder": here.metrics[split][metric], "record": there.metrics[split][metric]}
        pairs.append({"spec": trial.spec.to_dict(), "split": split, **scores})
    storage.close()
    learned = [pair for pair in pairs if max(pair["folder"], pair["record"]) > LEARNED]
    full = [pair for pair in learned if pair["spec"]["method"] == "full"]
    adapters = [pair for pair in learned if pair not in full]
    figures = {
        "machines": {"folder": read_machine(folder), "record": record.machine},
        "trials": len(pairs),
        "adapters": summarize(adapters),
        "full fine-tuning": summarize(full),
        "pairs": pairs,
    }
    return storage.name, figures


def summarize(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarize the differences record minus folder."""
    differences = [pair["record"] - pair["folder"] for pair in pairs]
    sizes = [abs(difference) for difference in differences]
    return {
        "learned": len(pairs),
        "median": statistics.median(sizes) if sizes else None,
        "largest": max(sizes, default=None),
        "record is higher": sum(difference > 0 for difference in differences),
    }


def main() -> None:
    for folder in sys.argv[1:]:
        name, figures = compare(Path(folder))
        write_results(f"replicates-{name}", figures)
        print(f"{name}: {figures['trials']} trials ran on both machines")
        print(f"adapters: {figures['adapters']}\nfull fine-tuning: {figures['full fine-tuning']}")


if __name__ == "__main__":
    main()
