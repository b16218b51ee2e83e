"""Divergence of training: a loss, a gradient or a parameter that is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ailora.errors import DivergenceError
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.training.role_trainers import AdapterTrainer
from ailora.recipes.training.trainer_checkpoints import complete_checkpoints

#: Loss scaling of fp16 meets overflows on purpose, and lowers its scale by each; below this it has found no cause.
_MIN_LOSS_SCALE = 1.0


_OF_MODEL = (
    "Nothing was trained before, so look at the model and the data first: weights that are not finite, or too large "
    "for fp16"
)


class DivergenceCheck(TrainerCallback):
    """Ends training before the first step whose loss or gradient is not finite changes a parameter.

    Checkpoints are finite too: the parameters that a step has made are looked at before they are saved.

    Args:
        trainer: the one that it is a callback of.
        folder: the run's.
    """

    def __init__(self, trainer: AdapterTrainer, folder: RunFolder) -> None:
        self.trainer = trainer
        self.folder = folder

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.trainer.step_loss = torch.zeros_like(self.trainer.step_loss)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        loss = self.trainer.step_loss
        gradients = (parameter.grad for parameter in self._trained_parameters() if parameter.grad is not None)
        largest = torch.zeros(()) if self._loss_scale_may_fall() else _largest(gradients)
        if self._is_finite_everywhere(loss, largest):
            return
        # Another rank's may be the one.
        number = "loss" if not loss.isfinite() or largest.isfinite() else "gradient"
        cause = _of_rate(args) if state.global_step else _OF_MODEL
        raise DivergenceError(self._describe(state.global_step + 1, f"the {number} is not finite", cause))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if control.should_save or state.global_step >= state.max_steps:
            self._validate_parameters(args, state)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if control.should_save:
            self._validate_parameters(args, state)

    def _validate_parameters(self, args: TrainingArguments, state: TrainerState) -> None:
        """Raise where what would be saved is not finite: the loss of the next step would be the first to show it."""
        largest = _largest(parameter.detach() for parameter in self._trained_parameters())
        if not self._is_finite_everywhere(largest):
            what = "it has made parameters that are not finite"
            raise DivergenceError(self._describe(state.global_step, what, _of_rate(args)))

    def _trained_parameters(self) -> list[nn.Parameter]:
        model = self.trainer.model
        assert model is not None
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    def _loss_scale_may_fall(self) -> bool:
        scaler = self.trainer.accelerator.scaler
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() > _MIN_LOSS_SCALE

    def _is_finite_everywhere(self, *values: Tensor) -> bool:
        """Whether numbers are finite on all ranks: all of them stop, or none."""
        device = self.trainer.accelerator.device
        bad = sum((~value.isfinite()).to(device, torch.float32) for value in values)
        return not self.trainer.accelerator.reduce(bad, "sum").item()  # type: ignore[union-attr]

    def _describe(self, step: int, what: str, cause: str) -> str:
        return (
            f"training diverged at step {step}: {what}. {cause}; or train on with on_nonfinite=continue. "
            f"{self._describe_checkpoint()}"
        )

    def _describe_checkpoint(self) -> str:
        complete = complete_checkpoints(self.folder.checkpoints)
        if not complete:
            return "No checkpoint was written before"
        return f"The last checkpoint before is kept: {complete[0]}; with other settings choose another output"


def _of_rate(args: TrainingArguments) -> str:
    return (
        f"Try a smaller training.learning_rate (it is {args.learning_rate:g}), training.warmup_steps, or bf16 in the "
        "place of fp16"
    )


def _largest(tensors: Iterable[Tensor]) -> Tensor:
    """Return the largest absolute value of floating tensors, of this rank's shards; not finite where one of them is."""
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    floating = [tensor for tensor in local if tensor.is_floating_point() and tensor.numel()]
    return get_total_norm(floating, norm_type=math.inf)
