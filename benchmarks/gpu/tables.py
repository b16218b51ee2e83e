"""Results of `run.py` as tables of a page.

python benchmarks/gpu/tables.py out/gpu/results.jsonl
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def format_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format a table of Markdown; floats get three significant digits, None a dash."""
    lines = [header, ["---"] * len(header), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def adapt_table(records: Sequence[Record]) -> str:
    rows = [
        (r["model"], "on" if r["cache"] else "off", r["first_s"], r["median_of_later_s"], r["peak_bytes"] / 2**20)
        for r in records
    ]
    return format_table(["model", "cache", "first call, s", "later calls, s", "peak, MiB"], rows)


def decompositions_table(records: Sequence[Record]) -> str:
    rows = []
    for r in records:
        if "seconds_per_matrix" in r:
            shape = " x ".join(map(str, r["shape"]))
            rows.append((r["name"], shape, r["band"], r.get("method"), r["seconds_per_matrix"], r["error"]))
        else:
            rows += [(name, "", "", "", seconds, None) for name, seconds in r.get("seconds", {}).items()]
    return format_table(["weights", "shape", "band", "method", "seconds a matrix", "error"], rows)


def steps_table(records: Sequence[Record]) -> str:
    rows = [
        (r["name"], form, f["median_ms"], f["ratio_to_stock_r"], f.get("step_peak_bytes", 0) / 2**20)
        for r in records
        for form, f in r["forms"].items()
    ]
    return format_table(["model", "form", "ms a step", "x stock r", "peak of a step, MiB"], rows)


def contracts_table(records: Sequence[Record]) -> str:
    rows = [(r["name"], r.get("outcome") or r.get("outcomes"), r.get("reason")) for r in records]
    return format_table(["check", "outcome", "reason"], ((n, o, r and r.splitlines()[-1]) for n, o, r in rows))


def trials_table(records: Sequence[Record]) -> str:
    """Final validation losses, means over seeds."""
    losses: dict[tuple[object, ...], list[float]] = defaultdict(list)
    for r in records:
        if "result" in r:
            s = r["settings"]
            key = (r["study"], json.dumps(s["policy"]), s["rank"], s["learning_rate"])
            losses[key].append(r["result"]["metrics"]["validation"]["loss"])
    rows = [(*key, len(of), statistics.mean(of)) for key, of in sorted(losses.items(), key=lambda item: str(item[0]))]
    summary = [f"{r['trials']} trials, {r['trials_per_minute']:.1f} a minute\n" for r in records if "trials" in r]
    header = ["study", "policy", "rank", "rate", "seeds", "validation loss"]
    return "\n".join([*summary, format_table(header, rows)])


TABLES = {
    "adapt": adapt_table,
    "decompositions": decompositions_table,
    "steps": steps_table,
    "contracts": contracts_table,
    "trials": trials_table,
}


def main(file: Path) -> None:
    records: dict[str, list[Record]] = defaultdict(list)
    for line in file.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        records[record["part"]].append(record)
    for part, of_part in records.items():
        end = next((r for r in of_part if r["name"] == "end"), {"outcome": "cut off"})
        print(f"## {part}, on {of_part[0].get('device')}: {end['outcome']}\n")
        measured = [r for r in of_part if r["name"] != "end" and "skipped" not in r]
        print(TABLES[part](measured) if part in TABLES else json.dumps(measured), end="\n\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
