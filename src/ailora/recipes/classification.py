"""Sequence classification and regression with `transformers.Trainer`."""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from ailora.adapters import Form, adapt, plan_of, save_adapter
from ailora.adapters.attach import sidecar_of
from ailora.adapters.sidecar import library_versions
from ailora.checkpoints.models import model_path
from ailora.errors import InputError
from ailora.recipes.callbacks import ProgressBar, RunLog
from ailora.recipes.card import model_card
from ailora.recipes.checkpoints import train_seconds
from ailora.recipes.examples import Examples, load_examples
from ailora.recipes.labels import Labels
from ailora.recipes.metrics import compute
from ailora.recipes.models import load_classifier, load_tokenizer
from ailora.recipes.predictions import Predictions, decide, first_output, write_frame
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.schema import ClassificationConfig
from ailora.recipes.tokens import check_max_length, collator, tokenize
from ailora.shards import write_text


def run(config: ClassificationConfig) -> dict[str, Any]:
    """Train and evaluate; the same call after a kill continues, after the end it returns the result again.

    Args:
        config: from `load_config`.

    Returns:
        What `result.json` holds.

    Raises:
        InputError: bad data, a folder that holds another run.
        ModelError: the model cannot be adapted as asked.
    """
    folder = RunFolder(config.output)
    if folder.result.exists():
        folder.claim(config)
        return folder.read_result()
    arguments = _training_arguments(config)
    data = _load_data(config)
    tokenizer = load_tokenizer(config.model)
    check_max_length(tokenizer, config.data.max_length, pairs=len(config.data.text) == 2)
    started = time.perf_counter()
    model = _start_model(config, data.labels, tokenizer)
    init_seconds = time.perf_counter() - started
    # Claimed only now: bad input leaves no folder behind.
    folder.claim(config)
    with folder.attempt():
        if isinstance(model, PeftModel):
            sidecar_of(model).write(folder.path)
        trainer, seconds = _train(config, arguments, data, model=model, tokenizer=tokenizer)
        times = {"init_seconds": init_seconds, "train_seconds": seconds}
        return _finish(config, trainer, data, tokenizer=tokenizer, times=times)


def _train(
    config: ClassificationConfig,
    arguments: TrainingArguments,
    data: _Data,
    *,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Trainer, float]:
    """Train to the end, from the newest checkpoint if there is one; the trainer, and the seconds of all processes."""
    folder = RunFolder(config.output)
    checkpoint = folder.newest_checkpoint()
    seconds_before = train_seconds(checkpoint) if checkpoint else 0.0
    finished = _finished_state(checkpoint)
    if checkpoint and finished:
        model = _load_weights(model, checkpoint)
    trainer = _trainer(config, arguments, data, model=model, tokenizer=tokenizer)
    log = RunLog(folder, seconds_before)
    trainer.add_callback(log)
    if finished:
        trainer.state = finished
        return trainer, seconds_before
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer, log.train_seconds


def _finish(
    config: ClassificationConfig,
    trainer: Trainer,
    data: _Data,
    *,
    tokenizer: PreTrainedTokenizerBase,
    times: dict[str, float],
) -> dict[str, Any]:
    """Evaluate every split, and write all that a finished run holds, `result.json` last."""
    folder = RunFolder(config.output)
    predictions = {
        split: Predictions.of(trainer, data.tokenized(split, tokenizer)) for split in data.splits if split != "train"
    }
    metrics = {
        split: made.scores(config.metrics, data.labels, data.encoded[split]) for split, made in predictions.items()
    }
    result = {"metrics": metrics} | _result(config, trainer, data) | times | {"peak_memory_bytes": _peak_memory()}
    _save(trainer.model, config, result)
    frames = [made.frame(data.labels, data.splits[split]).assign(split=split) for split, made in predictions.items()]
    write_frame(pd.concat(frames), folder.predictions)
    write_text(folder.result, json.dumps(result, indent=2) + "\n")
    return result


@dataclass(frozen=True)
class _Data:
    """The splits of a run and the meaning of their labels."""

    splits: dict[str, Examples]
    labels: Labels
    encoded: dict[str, list[int | float]]
    max_length: int

    def tokenized(self, split: str, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        """A split as the model takes it, with encoded labels."""
        return tokenize(self.splits[split], tokenizer, self.max_length).add_column("labels", self.encoded[split])


def _load_data(config: ClassificationConfig) -> _Data:
    names = ["train", "validation", *(["test"] if config.data.test else [])]
    splits = {name: load_examples(config.data, name) for name in names}
    labels = Labels.of(splits["train"].labels or [], splits["train"].where, regression=config.regression)
    encoded = {name: examples.encoded(labels) for name, examples in splits.items()}
    return _Data(splits, labels, encoded, config.data.max_length)


def _start_model(
    config: ClassificationConfig, labels: Labels, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel | PeftModel:
    """The base model with a fresh head, adapted. The head is drawn from the run's seed, whatever the policy."""
    set_seed(config.training["seed"])
    model = load_classifier(model_path(config.model), labels, tokenizer)
    if config.adapter.full:
        return model
    return adapt(model, config.adapter.policy, **config.adapter.plan_options(), task_type="SEQ_CLS")


def _finished_state(checkpoint: Path | None) -> TrainerState | None:
    """The state of a checkpoint at which training had ended; the Trainer would take one more step from there."""
    if checkpoint is None:
        return None
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return state if state.global_step >= state.max_steps else None


def _load_weights(model: PreTrainedModel | PeftModel, checkpoint: Path) -> PreTrainedModel | PeftModel:
    if isinstance(model, PeftModel):
        model.load_adapter(str(checkpoint), "default", is_trainable=True)
        return model
    return type(model).from_pretrained(checkpoint)


class _Trainer(Trainer):
    """The stock Trainer; in the residual form it does not decay the factors, which hold a part of the base."""

    residual = False

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        names = super().get_decay_parameter_names(model)
        return [name for name in names if not (self.residual and "lora_" in name)]


def _training_arguments(config: ClassificationConfig) -> TrainingArguments:
    """The Trainer's arguments; made before anything else, so that bad ones leave no trace.

    Raises:
        InputError: transformers refuses a value.
    """
    # Pinned memory is for an accelerator: torch warns where there is none.
    derived = {
        "output_dir": str(RunFolder(config.output).checkpoints),
        "data_seed": config.training["seed"],
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "label_names": ["labels"],
    }
    try:
        return TrainingArguments(**{**derived, **config.training})
    except (ValueError, TypeError) as error:
        raise InputError(f"training: {error}") from error


def _trainer(
    config: ClassificationConfig,
    arguments: TrainingArguments,
    data: _Data,
    *,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
) -> Trainer:
    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        decided = decide(first_output(prediction.predictions), data.labels)
        return compute(config.metrics, np.asarray(prediction.label_ids), decided, classes=data.labels.count)

    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=data.tokenized("train", tokenizer),
        eval_dataset=data.tokenized("validation", tokenizer),
        data_collator=collator(tokenizer),
        compute_metrics=compute_metrics,
    )
    trainer.residual = config.adapter.form == Form.RESIDUAL
    if not arguments.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ProgressBar)
    return trainer


def _result(config: ClassificationConfig, trainer: Trainer, data: _Data) -> dict[str, Any]:
    """What is known of a run when its training ends, times and memory aside."""
    history = [
        {key.removeprefix("eval_"): record[key] for key in ("step", "epoch", "eval_loss", *_eval_keys(config))}
        for record in trainer.state.log_history
        if "eval_loss" in record
    ]
    deciding = config.metrics[0]
    parameters = list(trainer.model.parameters()) if trainer.model else []
    return {
        "best": {
            "loss": min(history, key=lambda record: record["loss"], default=None),
            deciding: max(history, key=lambda record: record[deciding], default=None),
        },
        "history": history,
        "steps": trainer.state.global_step,
        "labels": list(data.labels.names) if data.labels.names else None,
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "total_parameters": sum(p.numel() for p in parameters),
        "adapted": dict(plan_of(trainer.model).counts) if isinstance(trainer.model, PeftModel) else {},
        "seed": config.training["seed"],
        "config": config.model_dump(),
        "versions": library_versions(),
    }


def _eval_keys(config: ClassificationConfig) -> list[str]:
    return [f"eval_{metric}" for metric in config.metrics]


def _save(model: Any, config: ClassificationConfig, result: dict[str, Any]) -> None:
    """Write `adapter/` with its card, or after full fine-tuning `model/`."""
    folder = RunFolder(config.output)

    def write_adapter(path: Path) -> None:
        save_adapter(model, path)
        write_text(path / "README.md", model_card(config, result))

    if isinstance(model, PeftModel):
        folder.write_folder(folder.adapter, write_adapter)
    else:
        folder.write_folder(folder.model, model.save_pretrained)


def _peak_memory() -> int:
    """Peak bytes of this process: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
