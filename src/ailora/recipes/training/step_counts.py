"""Steps of a run: their number, and the steps after which the run evaluates."""

from __future__ import annotations

import math

from transformers import TrainingArguments


def count_steps(arguments: TrainingArguments, rows: int) -> int:
    """Count the optimizer steps of a run, as the Trainer does.

    Args:
        arguments: Arguments of the Trainer.
        rows: Number of rows in an epoch; with packing, of packed rows.

    Returns:
        The number of steps.
    """
    if arguments.max_steps > 0:
        return arguments.max_steps
    return math.ceil(_count_epoch_steps(arguments, rows) * arguments.num_train_epochs)


def evaluation_steps(arguments: TrainingArguments, rows: int) -> list[int]:
    """List the steps after which a run evaluates.

    Args:
        arguments: Arguments of the Trainer.
        rows: Number of rows in an epoch; with packing, of packed rows.

    Returns:
        The steps in ascending order, including the last step of the run. Empty without evaluations.
    """
    total, epoch_steps = count_steps(arguments, rows), _count_epoch_steps(arguments, rows)
    if arguments.eval_strategy == "epoch":
        # Here, `eval_delay` is a number of epochs. With the strategy `steps`, it is a number of steps.
        interval, first = epoch_steps, arguments.eval_delay * epoch_steps
    elif arguments.eval_strategy == "steps" and arguments.eval_steps is not None:
        # A value below 1 is a fraction of all steps.
        is_fraction = arguments.eval_steps < 1
        interval = math.ceil(total * arguments.eval_steps) if is_fraction else int(arguments.eval_steps)
        first = arguments.eval_delay
    else:
        return []
    steps = [step for step in range(interval, total, interval) if step >= first]
    return [*steps, total]


def rows_per_step(arguments: TrainingArguments) -> int:
    """Return the number of rows in an optimizer step, over all processes."""
    return arguments.train_batch_size * max(1, arguments.world_size) * arguments.gradient_accumulation_steps


def _count_epoch_steps(arguments: TrainingArguments, rows: int) -> int:
    return max(1, math.ceil(rows / rows_per_step(arguments)))
