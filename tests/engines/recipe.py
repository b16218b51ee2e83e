"""`ailora train` in the processes that torchrun started; FSDP2 too, which accelerate keeps for accelerators.

python -m tests.engines.recipe '{"config": "run.yaml", "killed_at": 8}'
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
import transformers as tf
from accelerate import DistributedType
from torch import nn
from torch.distributed.tensor import DTensor

from ailora.recipes import registry
from ailora.recipes.config.loader import load_config
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.training import arguments


def main(config: str, killed_at: int | None = None) -> None:
    """Run a configuration, and die with all processes at a step."""
    resolved = load_config(config)
    fsdp = bool(resolved.training.get("fsdp"))
    if fsdp:
        arguments.validate_sharding = _sharding_on_cpus
    if killed_at is not None:
        tf.Trainer.training_step = _dying(tf.Trainer.training_step, killed_at)
    real = registry.save_model

    def save_model(config: RunConfig, trainer: tf.Trainer) -> Path:
        assert isinstance(trainer.model, nn.Module)
        spread = any(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
        assert spread == fsdp, f"FSDP2 asked for: {fsdp}; parameters are DTensors: {spread}"
        return real(config, trainer)

    registry.save_model = save_model
    registry.run(resolved)
    if dist.is_initialized():
        dist.destroy_process_group()


def _sharding_on_cpus(arguments: tf.TrainingArguments) -> None:
    """accelerate takes FSDP for granted only with an accelerator."""
    arguments.distributed_state.distributed_type = DistributedType.MULTI_GPU


def _dying(step: Any, at: int) -> Any:
    def training_step(self: tf.Trainer, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *arguments, **options)

    return training_step


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
