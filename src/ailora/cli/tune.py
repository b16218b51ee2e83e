"""`ailora tune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ailora.cli.options import Config, Json, Overrides

# Imported for types alone: the help must not pay for the trainers.
if TYPE_CHECKING:
    from ailora.studies.trial_storage import TrialStorage
    from ailora.tune.tune_design import TuneDesign


def tune(
    config: Config,
    overrides: Overrides = None,
    workers: Annotated[int, typer.Option(min=1, help="Trials at a time on this machine.")] = 1,
    as_json: Json = False,
) -> None:
    """Find learning rate, roles, rank and init within a budget, and train with them; a rerun after a kill resumes."""
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
    """Lines of a search: its plan, and the best candidate of every rung that has ended."""

    def __init__(self, storage: TrialStorage, *, quiet: bool) -> None:
        self._storage = storage
        self._quiet = quiet
        self._planned = False
        self._printed = 0

    def announce(self, design: TuneDesign) -> None:
        """Print where the rates come from."""
        self._print(design.request.centers_origin)

    def update(self, design: TuneDesign) -> None:
        """Print the plan once it is known, and the rungs that have ended since the last call."""
        from ailora.formatting import format_number, pluralize
        from ailora.tune.halving import find_progress

        if design.plan is None:
            return
        if not self._planned:
            self._planned = True
            counts = " -> ".join(str(count) for count in design.plan.counts)
            steps = ", ".join(f"{step:,}" for step in design.plan.steps)
            self._print(f"{counts} candidates until step {steps}: {design.plan.cost_runs:.2g} runs.")
        rungs = [rung for rung in find_progress(self._storage.trials(), design).rungs if rung.ended]
        for rung in rungs[self._printed :]:
            failed = len(rung.trials) - len(rung.scores)
            note = f", {failed} failed" if failed else ""
            best = next(iter(rung.ranking), None)
            leader = ""
            if best is not None:
                value = rung.scores[best] if design.larger_is_better else -rung.scores[best]
                leader = (
                    f"; best {best.condition.method} at {best.learning_rate:g}, {design.choices.goal} "
                    f"{format_number(value)}"
                )
            self._print(f"step {rung.step:,}: {pluralize(len(rung.trials), 'candidate')}{note}{leader}")
        self._printed = len(rungs)

    def _print(self, text: str) -> None:
        from ailora.cli.tables import console

        if not self._quiet:
            console.print(text)
