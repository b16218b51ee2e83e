"""Compare two runs of a study: how far apart does the same trial end on two machines?

    python benchmarks/replicates.py out/paper/nlu-cola-mpnet

The folder's study is compared, finished or not, with its record in `results/studies`, trial by trial: the same method,
learning rate and seed. `results/replicates-NAME.json` has the pairs, and medians and largest differences over the
trials that learned on at least one machine.
"""

from __future__ import annotations

import math
import statistics
import sys
from pathlib import Path
from typing import Any

from machine import write_results
from study_records import read_record

from ailora.report.inputs import find_studies

#: Score below which a trial learned nothing, for a correlation.
LEARNED = 0.2


def compare(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the name of a study, and the pairs of scores of its trials here and in its record."""
    (load,) = find_studies(folder, None)
    storage, design = load()
    record = read_record(storage.name)
    assert record is not None
    recorded = {trial.spec: trial.result for trial in record.trials if trial.result}
    pairs: list[dict[str, Any]] = []
    for trial in storage.trials():
        other = recorded.get(trial.spec)
        if trial.result is None or other is None:
            continue
        metric, split = design.metric(trial.spec.condition), "test" if "test" in other.metrics else "validation"
        scores = [result.metrics[split][metric] for result in (trial.result, other)]
        pairs.append({"spec": trial.spec.to_dict(), "metric": metric, "split": split, "scores": scores})
    storage.close()
    differences = [abs(here - there) for here, there in (p["scores"] for p in pairs) if max(here, there) > LEARNED]
    figures = {
        "recorded_on": record.machine,
        "trials": len(pairs),
        "learned": len(differences),
        "median": statistics.median(differences) if differences else math.nan,
        "largest": max(differences, default=math.nan),
        "pairs": pairs,
    }
    return storage.name, figures


def main() -> None:
    for folder in sys.argv[1:]:
        name, figures = compare(Path(folder))
        write_results(f"replicates-{name}", figures)
        print(f"{name}: {figures['trials']} trials ran on both machines, {figures['learned']} learned; ", end="")
        print(f"their scores differ by {figures['median']:.3f} (median) and {figures['largest']:.3f} (largest)")


if __name__ == "__main__":
    main()
