"""From a started model to a trained one, and to the files that say so: what every recipe does alike."""

from __future__ import annotations

import copy
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from ailora.adapter_io import save_adapter
from ailora.atomic_io import write_json, write_text
from ailora.distributed import is_main, wait_for_everyone
from ailora.errors import InputError
from ailora.lora import apply_plan
from ailora.lora.inject import get_metadata, has_ailora_adapter
from ailora.optim.param_groups import parse_multipliers
from ailora.plan import Plan, make_plan
from ailora.plan.adapter_metadata import library_versions
from ailora.recipes.baselines.adapter_origin import made_of
from ailora.recipes.baselines.base_conversion import save_converted, validate_same_anchor, write_start
from ailora.recipes.baselines.custom_function import apply_function
from ailora.recipes.baselines.peft_inits import apply_peft_init
from ailora.recipes.config.method import CustomFunction, FullFineTuning, Method, PeftInit, Preset
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.model_card import model_card
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.training.callbacks import ProgressBar, RunLog
from ailora.recipes.training.trainer_checkpoints import train_seconds
from ailora.weights.dtensor import any_dtensor

Model = PreTrainedModel | PeftModel
#: Training arguments that say which engine trains, and in which precision.
_ENGINE = ("fsdp", "fsdp_config", "deepspeed", "parallelism_config", "accelerator_config", "bf16", "fp16", "tf32")


@dataclass(frozen=True)
class Training:
    """What trains the model of a run.

    Attributes:
        arguments: the trainer's.
        make: makes the trainer of a model.
    """

    arguments: Any
    make: Callable[[Model, Any], Trainer]

    def trainer(self, model: Model) -> Trainer:
        """The trainer of a model."""
        return self.make(model, self.arguments)

    def loader(self, model: Model) -> Any:
        """The loader of the training batches of a run that has not begun: nothing is written, nothing reported."""
        arguments = copy.copy(self.arguments)
        arguments.report_to = []
        with tempfile.TemporaryDirectory() as elsewhere:
            arguments.output_dir = elsewhere
            return self.make(model, arguments).get_train_dataloader()


@dataclass(frozen=True)
class Fitted:
    """A model that training has ended with.

    Attributes:
        trainer: holds the model and the history.
        times: seconds of initialization and of training, those of earlier processes of the run included.
    """

    trainer: Trainer
    times: dict[str, float]


def training_arguments(config: RunConfig, **derived: Any) -> Any:
    """The trainer's arguments; made before anything else, so that bad ones leave no trace.

    Args:
        config: the run's.
        **derived: arguments that the recipe sets unless the configuration does.

    Raises:
        InputError: transformers refuses a value.
    """
    # Pinned memory is for an accelerator: torch warns where there is none. Anchors are the same everywhere from the
    # start, when DDP compares them: sending them again each step would only cost.
    accelerator = torch.accelerator.is_available()
    given = {
        "output_dir": str(RunFolder(config.output).checkpoints),
        "data_seed": config.training["seed"],
        "dataloader_pin_memory": accelerator,
        # Otherwise processes without an accelerator do not look for each other, and each trains alone.
        "use_cpu": not accelerator,
        "ddp_broadcast_buffers": False,
        "label_names": ["labels"],
        **derived,
        **config.training,
    }
    try:
        made = config.arguments(**given)
    except (ValueError, TypeError) as error:
        raise InputError(f"training: {error}") from error
    if made.fsdp:
        validate_sharding(made)
    return made


def on_one_process(config: RunConfig) -> RunConfig:
    """A configuration without the engine and the precision that its run was trained with: another machine uses it."""
    kept = {key: value for key, value in config.training.items() if key not in _ENGINE}
    return config.model_copy(update={"training": kept})


def validate_sharding(arguments: TrainingArguments) -> None:
    """Refuse FSDP where it would not do what is asked.

    Raises:
        InputError: no accelerator or launcher; FSDP's own activation checkpointing, with which checkpoints hold empty
            adapters.
    """
    state = arguments.distributed_state
    if state is None or state.distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU):
        raise InputError("training.fsdp needs an accelerator and a launcher: accelerate would leave it out in silence")
    if isinstance(arguments.fsdp_config, dict) and arguments.fsdp_config.get("activation_checkpointing"):
        raise InputError(
            "training.fsdp_config.activation_checkpointing renames layers, so that checkpoints hold empty adapters: "
            "set training.activation_checkpointing instead"
        )


def start(config: RunConfig, load: Callable[[], PreTrainedModel], training: Training) -> tuple[Model, float]:
    """The base model, adapted, and the seconds that took. New heads are drawn from the run's seed, whatever the policy.

    Args:
        config: the run's.
        load: loads the base model.
        training: what will train it; its batches are made only for a method that looks at them.

    Raises:
        InputError, ModelError: the model cannot be loaded, or not adapted as asked.
    """
    started = time.perf_counter()
    set_seed(config.training["seed"])
    base = load()
    model = _adapt(config, base, load, training)
    return model, time.perf_counter() - started


def _adapt(config: RunConfig, base: PreTrainedModel, load: Callable[[], PreTrainedModel], training: Training) -> Model:
    match config.adapter.method:
        case FullFineTuning():
            return base
        case Preset():
            return apply_plan(base, plan_for(config, base))
        case PeftInit() as init:
            _validate_no_sharding(config, init)
            return apply_peft_init(init, config, base, plan_for(config, base), loader=training.loader)
        case CustomFunction() as function:
            _validate_no_sharding(config, function)
            return apply_function(function, config, base, training.loader, load=load)


def _validate_no_sharding(config: RunConfig, method: Method) -> None:
    """What is not ours is saved by code that does not gather the shards of a model."""
    if config.training.get("fsdp") or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise InputError(f"adapter.policy {method} does not go with FSDP: use DDP, or a policy of ours")


def plan_for(config: RunConfig, model: PreTrainedModel) -> Plan:
    """Plan a run's adapter.

    Raises:
        InputError: a learning rate for a role that is not adapted; a method whose adapter is not planned.
        ModelError: the model cannot be adapted as asked.
    """
    adapter = config.adapter
    method = adapter.method
    if not isinstance(method, Preset | PeftInit):
        raise InputError(f"adapter.policy {method} has no plan: it says itself what is trained")
    plan = make_plan(model, method.policy, **adapter.plan_options(), task_type=config.task_type)
    parse_multipliers(adapter.learning_rates).validate_adapted(plan.counts)
    return plan


def fit(
    config: RunConfig,
    model: Model,
    training: Training,
    *,
    init_seconds: float,
    callbacks: Sequence[TrainerCallback] = (),
) -> Fitted:
    """Train to the end, from the newest checkpoint if there is one.

    Args:
        config: the run's; its folder is claimed.
        model: from `start`.
        training: what trains it.
        init_seconds: what `start` took.
        callbacks: further callbacks of the Trainer.

    Raises:
        ModelError: a checkpoint was trained over another base than this process has made.
    """
    folder = RunFolder(config.output)
    checkpoint = _newest_checkpoint(folder)
    _keep_start(folder, model, continued=checkpoint is not None)
    seconds_before = train_seconds(checkpoint) if checkpoint else 0.0
    finished = _finished_state(checkpoint)
    if checkpoint and finished:
        model = _load_weights(model, checkpoint)
    trainer = training.trainer(model)
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ProgressBar)
    log = RunLog(folder, seconds_before)
    for callback in (log, *callbacks):
        trainer.add_callback(callback)
    seconds = seconds_before
    if finished:
        trainer.state = finished
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        seconds = log.train_seconds
    return Fitted(trainer, {"init_seconds": init_seconds, "train_seconds": seconds})


def _keep_start(folder: RunFolder, model: Model, *, continued: bool) -> None:
    """Write what says what the adapter is, or what is needed to save it."""
    if has_ailora_adapter(model):
        if is_main():
            get_metadata(model).write(folder.path)
    elif isinstance(model, PeftModel) and made_of(model).overwritten:
        # Other processes take over what the main one has.
        if continued and is_main():
            validate_same_anchor(model, folder.initial)
        elif not continued:
            folder.write_folder(folder.initial, lambda path: write_start(model, path) if is_main() else None)


def _newest_checkpoint(folder: RunFolder) -> Path | None:
    """The same one in every process: half-written ones are removed by the main one, before the others look."""
    newest = folder.newest_checkpoint() if is_main() else None
    wait_for_everyone()
    return newest if is_main() else folder.newest_checkpoint()


def _finished_state(checkpoint: Path | None) -> TrainerState | None:
    """The state of a checkpoint at which training had ended; the Trainer would take one more step from there."""
    if checkpoint is None:
        return None
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return state if state.global_step >= state.max_steps else None


def _load_weights(model: Model, checkpoint: Path) -> Model:
    if isinstance(model, PeftModel):
        model.load_adapter(str(checkpoint), "default", is_trainable=True)
        return model
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    loaded = type(model).from_pretrained(checkpoint)
    for name, parameter in loaded.named_parameters():
        parameter.requires_grad_(trained.get(name, True))
    return loaded


def facts(config: RunConfig, fitted: Fitted) -> dict[str, Any]:
    """What is known of a run when its training ends."""
    trainer = fitted.trainer
    evaluated = [f"eval_{metric}" for metric in config.metrics]
    history = [
        {key.removeprefix("eval_"): record[key] for key in ("step", "epoch", "eval_loss", *evaluated)}
        for record in trainer.state.log_history
        if "eval_loss" in record
    ]
    best: dict[str, Any] = {"loss": min(history, key=lambda record: record["loss"], default=None)}
    for deciding in config.metrics[:1]:
        best[deciding] = max(history, key=lambda record: record[deciding], default=None)
    parameters = list(trainer.model.parameters()) if trainer.model else []
    plan = made_of(trainer.model).plan
    return {
        "best": best,
        "history": history,
        "steps": trainer.state.global_step,
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "total_parameters": sum(p.numel() for p in parameters),
        "adapted": dict(plan.counts) if plan else {},
        "seed": config.training["seed"],
        "config": config.model_dump(),
        "versions": library_versions(),
        **fitted.times,
        "peak_memory_bytes": _peak_memory(),
    }


def save_model(config: RunConfig, trainer: Trainer, result: dict[str, Any]) -> None:
    """Write `adapter/` with its card, or of a model without one `model/`. All processes take part.

    The bytes of its safetensors files go into the result, as `adapter_bytes`.
    """
    folder = RunFolder(config.output)
    model: Any = trainer.model
    sharded = any_dtensor(model.parameters())

    def write_adapter(path: Path) -> None:
        if has_ailora_adapter(model):
            if sharded or is_main():
                save_adapter(model, path)
        elif is_main():
            if made_of(model).overwritten:
                save_converted(model, path, folder.initial)
            else:
                model.save_pretrained(str(path))
        if is_main():
            write_text(path / "README.md", model_card(config, result))

    def write_model(path: Path) -> None:
        state = trainer.accelerator.get_state_dict(model) if sharded else None
        if is_main():
            model.save_pretrained(path, state_dict=state)

    with_adapter = isinstance(model, PeftModel)
    target = folder.adapter if with_adapter else folder.model
    folder.write_folder(target, write_adapter if with_adapter else write_model)
    wait_for_everyone()
    result["adapter_bytes"] = sum(file.stat().st_size for file in target.glob("*.safetensors"))


def write_result(folder: RunFolder, result: dict[str, Any]) -> None:
    """Write `result.json`, the last file of a run."""
    write_json(folder.result, result)


def _peak_memory() -> int:
    """Peak bytes of this process: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
