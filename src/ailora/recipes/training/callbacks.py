"""Callbacks of a run: write the log, mark complete checkpoints, show a progress bar."""

# transformers declares the types of its progress bars without None, but sets them to None.
# pyright: reportUnnecessaryComparison=false

from __future__ import annotations

import time
from collections.abc import Mapping

from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from ailora.atomic_io import append_text, format_json, write_text
from ailora.distributed import wait_for_everyone
from ailora.recipes.run_folder import RunFolder

_LOGGED_KEYS = ("loss", "learning_rate", "grad_norm")


class RunLog(TrainerCallback):
    """Callback that writes `log.jsonl` and marks complete checkpoints.

    Args:
        folder: Folder of the run.
        seconds_before: Duration of training before the checkpoint from which the run resumes, in seconds; 0 for a run
            that does not resume.
    """

    def __init__(self, folder: RunFolder, seconds_before: float) -> None:
        self.folder = folder
        self.started = time.perf_counter() - seconds_before

    @property
    def train_seconds(self) -> float:
        """Duration of training in seconds, including earlier processes of a resumed run."""
        return time.perf_counter() - self.started

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.is_world_process_zero:
            self.folder.claim(self.folder.log)
            # A resumed run trains the steps after its checkpoint again, so their lines are removed.
            write_text(self.folder.log, "".join(map(_format_line, list_logged_steps(state))))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        # The Trainer would not evaluate after the last step if `eval_delay` is longer than the run. For the strategy
        # "epoch", see `on_epoch_end`: evaluating here as well would evaluate the last step twice.
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_evaluate or args.eval_strategy == "steps"
            control.should_save = control.should_save or args.save_strategy == "steps"
        # A checkpoint does not contain the sum of losses since the last log entry. Logging at every checkpoint empties
        # the sum, so a resumed run logs the same means as an uninterrupted run.
        if control.should_save:
            control.should_log = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_evaluate or args.eval_strategy == "epoch"
        if control.should_save:
            control.should_log = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        record = state.log_history[-1]
        if "loss" in record and state.is_world_process_zero:
            append_text(self.folder.log, _format_line(_select_logged_keys(record)))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        # Each rank writes a part of the checkpoint. The checkpoint is complete only when all ranks have arrived here.
        wait_for_everyone()
        if state.is_world_process_zero:
            self.folder.mark_complete(state.global_step, self.train_seconds)
        wait_for_everyone()


class ProgressBar(ProgressCallback):
    """Progress bar with the last loss. Evaluations during training appear in the same bar."""

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: DataLoader[object] | None = None,
        **kwargs: object,
    ) -> None:
        if self.training_bar is not None:
            # Drawing the bar once per evaluation is enough. At the first batch, the bar has no description yet.
            is_first_batch = self.training_bar.desc == ""
            self.training_bar.set_description("evaluating", refresh=is_first_batch)
        elif self.prediction_bar is None and state.is_world_process_zero and has_length(eval_dataloader):
            self.prediction_bar = tqdm(total=len(eval_dataloader), desc="evaluating", leave=False, disable=None)
        if self.prediction_bar is not None:
            self.prediction_bar.update()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        super().on_evaluate(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        losses = {k.removeprefix("eval_"): f"{v:.4f}" for k, v in (logs or {}).items() if k in ("loss", "eval_loss")}
        if self.training_bar is not None and losses:
            self.training_bar.set_postfix(losses)


def list_logged_steps(state: TrainerState) -> list[dict[str, float]]:
    """Return step, epoch, loss, learning rate and gradient norm for every logging step so far."""
    return [_select_logged_keys(record) for record in state.log_history if "loss" in record]


def _select_logged_keys(record: dict[str, float]) -> dict[str, float]:
    return {key: record[key] for key in ("step", "epoch", *_LOGGED_KEYS) if key in record}


def _format_line(record: dict[str, float]) -> str:
    return format_json(record) + "\n"
