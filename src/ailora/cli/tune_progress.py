"""Progress of a search by `ailora tune`: a line for the plan and for each rung, and a status of the running rung."""

from __future__ import annotations

from rich.status import Status

from ailora.cli.tables import console
from ailora.formatting import format_number, pluralize
from ailora.studies.trial_storage import TrialStorage
from ailora.tune.halving import Rung, find_progress
from ailora.tune.rung_plan import RungPlan
from ailora.tune.tune_design import TuneDesign


class TuneProgress:
    """Print the plan and the ended rungs of a search. In a terminal, also show the status of the running rung.

    Args:
        storage: Trials of the search.
        design: Design of the search.
        quiet: Whether to print nothing.
    """

    def __init__(self, storage: TrialStorage, design: TuneDesign, *, quiet: bool) -> None:
        self._storage, self._design, self._quiet = storage, design, quiet
        self._status = Status("Starting", console=console)
        self._n_printed = 0

    def __enter__(self) -> TuneProgress:
        if not self._quiet:
            # Sentences on where the learning rates at the centers of the search come from.
            console.print(self._design.request.centers_origin)
            # Outside a terminal, Status would print a line for each change.
            if console.is_terminal:
                self._status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._status.stop()

    def update(self, design: TuneDesign) -> None:
        """Print the plan and the rungs that have ended since the last call.

        Args:
            design: Current design, which changes when a budget in time is converted into runs.
        """
        if self._quiet:
            return
        progress = find_progress(self._storage.trials(), design)
        lines = [_plan_line(design.plan)] if design.plan else []
        lines += [_rung_line(rung, design) for rung in progress.rungs if rung.ended and design.plan]
        # Lines are only ever appended, so those after the first `_n_printed` are new.
        for line in lines[self._n_printed :]:
            console.print(line)
        self._n_printed = len(lines)
        if progress.ended:
            # The best run is then completed in this process, with progress bars of its own.
            self._status.stop()
        else:
            self._status.update(_status_line(progress.rungs[-1]))


def _plan_line(plan: RungPlan) -> str:
    (first_count, first_step), *later_rungs = zip(plan.counts, plan.steps, strict=True)
    parts = [f"{pluralize(first_count, 'candidate')} to step {first_step:,}"]
    for count, step in later_rungs:
        best = f"the best {count}" if count > 1 else "the best"
        parts.append(f"{best} to step {step:,}")
    return f"Plan: {', '.join(parts)}, at {plan.cost_runs:.2g}x the cost of one run."


def _rung_line(rung: Rung, design: TuneDesign) -> str:
    failed = len(rung.trials) - len(rung.scores)
    line = f"Step {rung.step:,}: {pluralize(len(rung.trials), 'candidate')}" + (f", {failed} failed" if failed else "")
    if rung.ranking:
        best = rung.ranking[0]
        settings = design.space.describe(best.condition, best.learning_rate)
        trial = rung.trials[best]
        assert trial is not None
        assert trial.result is not None
        value = format_number(design.value(trial.result, rung.step))
        line += f"; best {settings}, {design.ranking_metric(rung.step)} {value}"
    return line + "."


def _status_line(rung: Rung) -> str:
    ended = sum(trial is not None and trial.ended for trial in rung.trials.values())
    return f"Training to step {rung.step:,}: {ended} of {pluralize(len(rung.trials), 'candidate')} ended"
