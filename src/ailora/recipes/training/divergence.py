"""Detect divergence of training: a loss, a gradient or a parameter that is not finite."""

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
from ailora.recipes.training.trainer_checkpoints import list_complete_checkpoints

#: Training in fp16 scales the loss by a large number, and halves this number after each overflow. At this scale or
#: below, an overflow is caused by the model and not by the scale.
_MIN_LOSS_SCALE = 1.0

_MODEL_CAUSE = (
    "This is the first step, so check the model and the data: weights may be NaN, infinite, or too large for fp16"
)


class DivergenceCheck(TrainerCallback):
    """Callback that ends training before a non-finite loss or gradient changes a parameter.

    Parameters are checked before every save, so that all checkpoints are finite.

    Args:
        trainer: Trainer with this callback.
        folder: Folder of the run.
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
        # While the loss scale may fall, a gradient may overflow: the scaler then skips the step and halves the scale.
        largest = torch.zeros(()) if self._loss_scale_may_fall() else _max_abs(gradients)
        if self._is_finite_everywhere(loss, largest):
            return
        # If both are finite on this rank, the loss or a gradient on a different rank is not; the message then names the
        # loss.
        quantity = "loss" if not loss.isfinite() or largest.isfinite() else "gradient"
        cause = _format_rate_cause(args) if state.global_step else _MODEL_CAUSE
        raise DivergenceError(self._describe(state.global_step + 1, f"the {quantity} is not finite", cause))

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
        """Validate that the parameters are finite after the step."""
        # The loss shows non-finite parameters only in the next step, after the checkpoint has been saved.
        largest = _max_abs(parameter.detach() for parameter in self._trained_parameters())
        if not self._is_finite_everywhere(largest):
            symptom = "parameters are no longer finite"
            raise DivergenceError(self._describe(state.global_step, symptom, _format_rate_cause(args)))

    def _trained_parameters(self) -> list[nn.Parameter]:
        model = self.trainer.model
        assert model is not None
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    def _loss_scale_may_fall(self) -> bool:
        scaler = self.trainer.accelerator.scaler
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() > _MIN_LOSS_SCALE

    def _is_finite_everywhere(self, *values: Tensor) -> bool:
        """Return whether values are finite on all ranks."""
        # All ranks must agree, because ranks that continue would wait forever for ranks that stop.
        device = self.trainer.accelerator.device
        n_nonfinite = sum((~value.isfinite()).to(device, torch.float32) for value in values)
        return not self.trainer.accelerator.reduce(n_nonfinite, "sum").item()  # type: ignore[union-attr]

    def _describe(self, step: int, symptom: str, cause: str) -> str:
        return (
            f"training diverged at step {step}: {symptom}. {cause}. To continue regardless, set on_nonfinite=continue. "
            f"{self._describe_checkpoint()}"
        )

    def _describe_checkpoint(self) -> str:
        complete = list_complete_checkpoints(self.folder.checkpoints)
        if not complete:
            return "There is no checkpoint yet"
        return f"The last checkpoint is kept: {complete[0]}. To train with different settings, set a different output"


def _format_rate_cause(args: TrainingArguments) -> str:
    return (
        f"Lower training.learning_rate (now {args.learning_rate:g}), set training.warmup_steps, or use bf16 instead of "
        "fp16"
    )


def _max_abs(tensors: Iterable[Tensor]) -> Tensor:
    """Return the largest absolute entry of floating-point tensors on this rank: NaN or infinite if an entry is."""
    shards = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    floating = [tensor for tensor in shards if tensor.is_floating_point() and tensor.numel()]
    return get_total_norm(floating, norm_type=math.inf)
