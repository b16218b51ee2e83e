"""Measure the size of a study's report, and the time until its first figure is drawn.

    python benchmarks/bench_report.py [--trials 1000] [--repeats 5]

The study has about `--trials` simulated trials with 100 evaluations each, in a real SQLite storage. Chromium opens the
page from disk, without a cache. Times are the browser's own performance entries, in milliseconds from the start of
loading.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe, write_results
from playwright.sync_api import Browser, sync_playwright

from ailora.report.build import build_page
from ailora.report.html import write_page

ROOT = Path(__file__).resolve().parents[1]
#: Number of trials of a task at a rank.
_TRIALS_PER_TASK_AND_RANK = 80
_ENTRIES = """() => {
    const paint = Object.fromEntries(performance.getEntriesByType("paint").map((one) => [one.name, one.startTime]));
    return {
        first_paint: paint["first-contentful-paint"],
        first_figure: performance.getEntriesByName("figure")[0].startTime,
        loaded: performance.getEntriesByType("navigation")[0].loadEventEnd,
    };
}"""


def write_study(folder: Path, trials: int) -> int:
    """Write the storage of a study with about `trials` trials, and return their exact number."""
    sys.path.insert(0, str(ROOT))
    from tests.report.sample_studies import plausible, stored, study_file

    tasks = {
        f"task-{i}": {"data.max_train_samples": i}
        for i in range(1, max(1, round(trials / _TRIALS_PER_TASK_AND_RANK / 2)) + 1)
    }
    grid = {"adapter.rank": [4, 16]}
    rates = {"values": [3e-4, 1e-3, 3e-3, 1e-2]}
    file = study_file(folder, tasks=tasks, grid=grid, learning_rate=rates)
    store, _ = stored(file, lambda cell: plausible(cell, evaluations=100))
    try:
        return len(store.trials())
    finally:
        store.close()


def open_page(browser: Browser, file: Path) -> dict[str, float]:
    """Return milliseconds until the first paint, the first figure and the end of loading, and of processor time.

    Unlike the others, processor time hardly depends on other programs.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    devtools = context.new_cdp_session(page)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(file.as_uri())
    page.wait_for_selector(".chart[data-drawn]", timeout=60_000)
    found = page.evaluate(_ENTRIES)
    metrics = {one["name"]: one["value"] for one in devtools.send("Performance.getMetrics")["metrics"]}
    context.close()
    return found | {"processor": 1000 * metrics["TaskDuration"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    program = shutil.which("chromium")
    if program is None:
        sys.exit("needs chromium")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made, sync_playwright() as playwright:
        folder = Path(made)
        figures["trials"] = write_study(folder, arguments.trials)
        started = time.perf_counter()
        page = build_page([folder / "study"], bootstrap=False)
        figures["charts"] = len(list(page.charts))
        write_page(page, folder / "report.html")
        figures["seconds_to_write"] = round(time.perf_counter() - started, 2)
        figures["bytes"] = (folder / "report.html").stat().st_size
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        runs = [open_page(browser, folder / "report.html") for _ in range(arguments.repeats)]
        figures |= {"browser": browser.version, "load_average": round(os.getloadavg()[0], 1)}
        browser.close()
    for name in runs[0]:
        values = [run[name] for run in runs]
        figures[f"milliseconds_{name}"] = {"median": round(statistics.median(values)), "most": round(max(values))}
    print(figures)
    print(f"written to {write_results('report', figures)} ({describe()['processor']})")


if __name__ == "__main__":
    main()
