"""Causal language models with TRL's `SFTTrainer`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers import Trainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from ailora.checkpoints.models import model_path
from ailora.recipes.fitting import Model, fit, start, training_arguments
from ailora.recipes.language.outcome import LanguageData, finish, likelihood_of_base, load_data, make_evaluator
from ailora.recipes.language.tokens import Tokenization, complete_tokenizer
from ailora.recipes.models import load_language_model, load_tokenizer
from ailora.recipes.quantization import quantization_config
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.schema import CausalLMConfig
from ailora.recipes.trainers import AdapterTrainer


def run(config: CausalLMConfig) -> dict[str, Any]:
    """Train and evaluate; the same call after a kill continues, after the end it returns the result again.

    Args:
        config: from `load_config`.

    Returns:
        What `result.json` holds.

    Raises:
        InputError: bad data, a tokenizer that lacks a token or template, a folder that holds another run.
        ModelError: the model cannot be adapted as asked.
    """
    folder = RunFolder(config.output)
    if folder.result.exists():
        folder.claim(config)
        return folder.read_result()
    arguments = causal_arguments(config)
    tokenization = causal_tokenization(config, arguments)
    evaluator = make_evaluator(config, tokenization, arguments)
    data = load_data(config, evaluator)
    load = partial(
        load_language_model, model_path(config.model), tokenization.tokenizer, quantization=quantization_config(config)
    )
    model, init_seconds = start(config, load)
    base = likelihood_of_base(config, evaluator, data, model)
    # Claimed only now: bad input leaves no folder behind.
    folder.claim(config)
    with folder.attempt():
        make = partial(_trainer, config, arguments, data, tokenization=tokenization)
        fitted = fit(config, model, make, init_seconds=init_seconds)
        return finish(config, fitted, data, evaluator=evaluator, base=base)


def causal_arguments(config: CausalLMConfig) -> SFTConfig:
    """The trainer's arguments. Mixed precision and activation checkpointing are for accelerators, as TRL means them.

    Raises:
        InputError: a value that TRL refuses.
    """
    accelerator = torch.accelerator.is_available()
    arguments: SFTConfig = training_arguments(
        config,
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        activation_checkpointing=accelerator,
    )
    # Rows come to the trainer with their labels, where it would look for conversations.
    arguments.assistant_only_loss = False
    return arguments


def causal_tokenization(config: CausalLMConfig, arguments: SFTConfig) -> Tokenization:
    """How rows become tokens.

    Raises:
        InputError: a tokenizer that lacks a token or a chat template.
    """
    tokenizer = load_tokenizer(config.model)
    chat = config.data.messages is not None
    complete_tokenizer(tokenizer, name=config.model, chat_template=config.data.chat_template, chat=chat)
    return Tokenization(
        tokenizer,
        # Packing cuts at its own places.
        max_length=None if arguments.packing else arguments.max_length,
        whole_loss=arguments.completion_only_loss is False,
        assistant_loss=config.training.get("assistant_only_loss", False),
    )


class _Trainer(AdapterTrainer, SFTTrainer):
    """TRL's trainer with the learning rates of roles."""


def _trainer(
    config: CausalLMConfig, arguments: SFTConfig, data: LanguageData, model: Model, *, tokenization: Tokenization
) -> Trainer:
    return _Trainer(
        adapter=config.adapter,
        model=model,
        args=arguments,
        train_dataset=data.tokenized["train"],
        eval_dataset=data.tokenized["validation"],
        processing_class=tokenization.tokenizer,
    )
