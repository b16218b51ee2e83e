"""`ailora tune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ailora.cli.options import Config, Json, Overrides

# Imported for types only: the help must not pay for the trainers.
if TYPE_CHECKING:
    from ailora.studies.trial_storage import TrialStorage
    from ailora.tune.halving import Rung
    from ailora.tune.rung_plan import RungPlan
    from ailora.tune.tune_design import TuneDesign


def tune(
    config: Config,
    overrides: Overrides = None,
    workers: Annotated[int, typer.Option(min=1, help="Concurrent trials on this machine.")] = 1,
    as_json: Json = False,
) -> None:
    """Search for learning rate, roles, rank and init within a budget, and keep the best run. A rerun resumes."""
    from ailora.cli.tables import console, print_json, tune_table
    from ailora.recipes.config.loader import load_config
    from ailora.tune.tune_run import open_search, run_search

    storage, design = open_search(load_config(config, overrides or []))
    progress = _Progress(storage, quiet=as_json)
    progress.announce(design)
    result = run_search(storage, design, workers=workers, on_poll=progress.update)
    if as_json:
        print_json(result.to_dict())
        return
    console.print(tune_table(result))
    for sentence in result.sentences:
        console.print(sentence)
    console.print(f"written to {result.output}")


class _Progress:
    """Progress of a search, printed in lines: the plan, and the best candidate of each rung at its end."""

    def __init__(self, storage: TrialStorage, *, quiet: bool) -> None:
        self._storage = storage
        self._quiet = quiet
        self._n_printed = -1

    def announce(self, design: TuneDesign) -> None:
        """Print the origin of the learning rates."""
        self._print(design.request.centers_origin)

    def update(self, design: TuneDesign) -> None:
        """Print the plan at the first call that has one, and the rungs that have ended since the last call."""
        from ailora.tune.halving import find_progress

        if design.plan is None:
            return
        rungs = [rung for rung in find_progress(self._storage.trials(), design).rungs if rung.ended]
        lines = [_plan_line(design.plan), *(_rung_line(rung, design) for rung in rungs)]
        for line in lines[self._n_printed + 1 :]:
            self._print(line)
        self._n_printed = len(lines) - 1

    def _print(self, text: str) -> None:
        from ailora.cli.tables import console

        if not self._quiet:
            console.print(text)


def _plan_line(plan: RungPlan) -> str:
    counts = " -> ".join(str(count) for count in plan.counts)
    steps = ", ".join(f"{step:,}" for step in plan.steps)
    return f"{counts} candidates until step {steps}: {plan.cost_runs:.2g} runs."


def _rung_line(rung: Rung, design: TuneDesign) -> str:
    from ailora.formatting import format_number, pluralize

    failed = len(rung.trials) - len(rung.scores)
    line = f"step {rung.step:,}: {pluralize(len(rung.trials), 'candidate')}" + (f", {failed} failed" if failed else "")
    if rung.ranking:
        best = rung.ranking[0]
        value = rung.scores[best] if design.larger_is_better else -rung.scores[best]
        line += f"; best {best.condition.method} at {best.learning_rate:g}, {design.space.goal} {format_number(value)}"
    return line
