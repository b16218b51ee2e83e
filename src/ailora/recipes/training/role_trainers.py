"""Trainer mixin with learning rates by role and factor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import Trainer

from ailora.distributed import raise_on_all_ranks
from ailora.optim.param_groups import parse_multipliers, split_param_groups
from ailora.plan import Form
from ailora.recipes.baselines.adapter_origin import get_adapter_origin
from ailora.recipes.config.schema import AdapterConfig
from ailora.recipes.run_folder import RunFolder


class AdapterTrainer(Trainer):
    """Trainer mixin with learning rates by role and factor; must precede a stock trainer among the base classes.

    Args:
        adapter: Section `adapter:` of the configuration.
        **arguments: Arguments of the stock trainer.
    """

    def __init__(self, *, adapter: AdapterConfig, **arguments: Any) -> None:
        self.adapter = adapter
        #: Sum of the batch losses in the current step; reset by `DivergenceCheck`.
        self.step_loss = torch.zeros(())
        super().__init__(**arguments)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.step_loss = self.step_loss.to(loss.device) + loss
        return loss

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate without label smoothing, so that the losses equal those of `ailora evaluate`."""
        smoother, self.label_smoother = self.label_smoother, None
        try:
            return super().prediction_step(*args, **kwargs)
        finally:
            self.label_smoother = smoother

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        names = super().get_decay_parameter_names(model)
        # In the residual form, the factors contain a part of the base weight, and weight decay would shrink this part.
        residual = self.adapter.form == Form.RESIDUAL
        return [name for name in names if not (residual and "lora_" in name)]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        # The Trainer calls this method several times, but the groups must be split only once.
        has_optimizer = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if self.adapter.learning_rates and not has_optimizer:
            multipliers = parse_multipliers(self.adapter.learning_rates)
            adapted: Any = self.model
            plan = get_adapter_origin(adapted).plan
            optimizer.param_groups = split_param_groups(optimizer.param_groups, adapted, multipliers, plan=plan)
        return optimizer

    def _get_eval_sampler(self, eval_dataset: Dataset[Any]) -> Sampler[int]:
        """Evaluate in the order of the rows."""
        # With `group_by_length`, the Trainer would also reorder the rows of evaluations, and mix up their predictions.
        return SequentialSampler(eval_dataset)  # type: ignore[arg-type]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Record a checkpoint in the manifest of the run, then write the checkpoint."""
        # After a kill, only incomplete checkpoints in the manifest are removed, because others may belong to the user.
        with raise_on_all_ranks():
            if self.is_world_process_zero():
                folder = RunFolder(Path(str(self.args.output_dir)).parent)
                folder.begin_checkpoint(self.state.global_step, rotates=bool(self.args.save_total_limit))
        super()._save_checkpoint(model, trial)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the configured learning rate. The Trainer would log the rate of the first parameter group, a multiple."""
        groups = getattr(self.optimizer, "param_groups", [{}])
        if "learning_rate" in logs:
            logs["learning_rate"] /= groups[0].get("multiplier", 1.0)
        super().log(logs, start_time)
