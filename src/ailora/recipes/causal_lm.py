"""Causal language models with TRL's `SFTTrainer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from ailora.recipes.config.schema import CausalLMConfig
from ailora.recipes.data.tokenize_language import Tokenization, complete_tokenizer
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.task_models import load_tokenizer
from ailora.recipes.training.fit import training_arguments
from ailora.recipes.training.language_training import run_language_model
from ailora.recipes.training.role_trainers import AdapterTrainer


def run(config: CausalLMConfig, callbacks: Sequence[TrainerCallback] = ()) -> dict[str, Any]:
    """Train and evaluate; the same call after a kill continues, after the end it returns the result again.

    Args:
        config: from `load_config`.
        callbacks: further callbacks of the Trainer.

    Returns:
        What `result.json` holds.

    Raises:
        InputError: bad data, a tokenizer that lacks a token or template, a folder that holds another run.
        ModelError: the model cannot be adapted as asked.
    """
    if result := RunFolder(config.output).finished(config):
        return result
    arguments = causal_arguments(config)
    tokenization = causal_tokenization(config, arguments)
    return run_language_model(config, arguments, tokenization, make_trainer=_Trainer, callbacks=callbacks)


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
