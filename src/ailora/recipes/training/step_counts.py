"""Steps of a run: how many there are, and after which of them it evaluates."""

from __future__ import annotations

import math

from transformers import TrainingArguments


def count_steps(arguments: TrainingArguments, rows: int) -> int:
    """Count the optimizer steps of a run, as the Trainer does.

    Args:
        arguments: Arguments of the trainer.
        rows: Rows of the training data, which are not packed.
    """
    if arguments.max_steps > 0:
        return arguments.max_steps
    return math.ceil(_epoch_steps(arguments, rows) * arguments.num_train_epochs)


def evaluation_steps(arguments: TrainingArguments, rows: int) -> list[int]:
    """List the steps after which a run evaluates, in ascending order; the last step is one of them.

    Args:
        arguments: Arguments of the trainer.
        rows: Rows of the training data, which are not packed.

    Returns:
        The steps. Empty for a run without evaluations.
    """
    total, epoch = count_steps(arguments, rows), _epoch_steps(arguments, rows)
    if arguments.eval_strategy == "epoch":
        interval, first = epoch, arguments.eval_delay * epoch
    elif arguments.eval_strategy == "steps" and arguments.eval_steps is not None:
        # Below 1 it is a share of all steps.
        share = arguments.eval_steps < 1
        interval = math.ceil(total * arguments.eval_steps) if share else int(arguments.eval_steps)
        first = arguments.eval_delay
    else:
        return []
    steps = [step for step in range(interval, total, interval) if step >= first]
    return [*steps, total]


def rows_per_step(arguments: TrainingArguments) -> int:
    """Return the number of rows of an optimizer step, over all processes."""
    return arguments.train_batch_size * max(1, arguments.world_size) * arguments.gradient_accumulation_steps


def _epoch_steps(arguments: TrainingArguments, rows: int) -> int:
    return max(1, math.ceil(rows / rows_per_step(arguments)))
