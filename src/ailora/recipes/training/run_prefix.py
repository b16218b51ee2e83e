"""Prefixes of runs: train the first steps of a full schedule, up to a checkpoint from which the run can resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ailora.errors import InputError
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.training.results import list_evaluations


@dataclass(frozen=True)
class RunPrefix:
    """First steps of a run.

    Attributes:
        step: Last step of the prefix, after which the run evaluates.
        total_steps: Number of steps in the full run. The learning-rate schedule depends on this number.
    """

    step: int
    total_steps: int


class PrefixEnd(Exception):
    """Signal that the prefix of a run has ended, and that its checkpoint is complete."""


class StopAtPrefix(TrainerCallback):
    """Callback that saves a checkpoint after the evaluation at the end of a prefix, and raises `PrefixEnd`.

    Args:
        prefix: Prefix of the run; its last step must be followed by an evaluation.
    """

    def __init__(self, prefix: RunPrefix) -> None:
        self.prefix = prefix

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.max_steps != self.prefix.total_steps:
            raise InputError(
                f"expected a schedule of {self.prefix.total_steps} steps, got {state.max_steps}: set training.max_steps"
            )
        if state.global_step == self.prefix.step:
            # An evaluation by epoch comes after this event, and must be part of the checkpoint. For such runs,
            # `on_epoch_end` requests the checkpoint. Checkpoints lack the training loss since the last log entry, so
            # this loss is logged too.
            control.should_save = control.should_log = args.eval_strategy == "steps"

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.global_step == self.prefix.step and args.eval_strategy == "epoch":
            control.should_save = control.should_log = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        if state.global_step == self.prefix.step:
            raise PrefixEnd


def read_prefix(folder: RunFolder, prefix: RunPrefix, metrics: Sequence[str]) -> list[dict[str, Any]] | None:
    """Read the evaluations of a trained prefix.

    Args:
        folder: Folder of the run.
        prefix: Prefix of the run.
        metrics: Names of the run's metrics.

    Returns:
        The evaluations up to the last step of the prefix, in the format of `list_evaluations`. None if the newest
        checkpoint is from an earlier step, or if there is no checkpoint.

    Raises:
        InputError: A file of the newest checkpoint is missing or damaged.
    """
    checkpoint = folder.find_newest_checkpoint()
    if checkpoint is None:
        return None
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if state.global_step < prefix.step:
        return None
    return [record for record in list_evaluations(state, metrics) if record["step"] <= prefix.step]
