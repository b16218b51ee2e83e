"""A run that trains a language model, whatever its kind: what the recipes of language models share from end to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from ailora.model_loading import resolve_model
from ailora.recipes.config.quantization import quantization_config
from ailora.recipes.config.schema import LanguageConfig
from ailora.recipes.data.tokenize_language import Tokenization
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.task_models import load_language_model
from ailora.recipes.training.fit import Model, Training, fit, start
from ailora.recipes.training.language_results import finish, likelihood_of_base, load_data, make_evaluator


def run_language_model(
    config: LanguageConfig,
    arguments: TrainingArguments,
    tokenization: Tokenization,
    *,
    make_trainer: Callable[..., Trainer],
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Load, adapt, train, measure and write.

    Args:
        config: a run that has not finished.
        arguments: the trainer's.
        tokenization: how rows become tokens.
        make_trainer: makes the trainer, given its arguments by name.
        callbacks: further callbacks of the Trainer.

    Returns:
        What `result.json` holds.

    Raises:
        InputError, ModelError: as the recipe's `run`.
    """
    folder = RunFolder(config.output)
    evaluator = make_evaluator(config, tokenization, arguments)
    data = load_data(config, evaluator)
    load = partial(language_loader(config, tokenization), resolve_model(config.model))

    def trainer_of(model: Model, arguments: TrainingArguments) -> Trainer:
        return make_trainer(
            adapter=config.adapter,
            model=model,
            args=arguments,
            train_dataset=data.tokenized["train"],
            eval_dataset=data.tokenized["validation"],
            processing_class=tokenization.tokenizer,
        )

    training = Training(arguments, trainer_of)
    model, init_seconds = start(config, load, training)
    base = likelihood_of_base(evaluator, data, model)
    # Claimed only now: bad input leaves no folder behind.
    with folder.claimed(config):
        fitted = fit(config, model, training, init_seconds=init_seconds, callbacks=callbacks)
        return finish(config, fitted, data, evaluator=evaluator, base=base)


def language_loader(config: LanguageConfig, tokenization: Tokenization) -> Callable[[str], PreTrainedModel]:
    """What loads a model of the run's kind from a folder or hub id, quantized as the run says."""
    return partial(
        load_language_model,
        tokenizer=tokenization.tokenizer,
        task_type=config.task_type,
        quantization=quantization_config(config),
    )
