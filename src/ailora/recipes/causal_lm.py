"""Causal language models with TRL's `SFTTrainer`."""

from __future__ import annotations

from functools import cached_property

from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from ailora.recipes.config.schema import CausalLMConfig
from ailora.recipes.data.tokenize_language import Tokenization, prepare_tokenizer
from ailora.recipes.language_model import LanguageRecipe
from ailora.recipes.recipe import Model
from ailora.recipes.task_models import load_tokenizer
from ailora.recipes.training.role_trainers import AdapterTrainer


class CausalLMRecipe(LanguageRecipe[CausalLMConfig]):
    """Text, prompts with completions, or conversations."""

    @cached_property
    def arguments(self) -> SFTConfig:
        arguments = super().arguments
        assert isinstance(arguments, SFTConfig)
        # Rows come to the trainer with their labels, where it would look for conversations.
        arguments.assistant_only_loss = False
        return arguments

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        config = self.config
        tokenizer = load_tokenizer(config.model)
        chat = config.data.messages is not None
        prepare_tokenizer(tokenizer, name=config.model, chat_template=config.data.chat_template, chat=chat)
        return tokenizer

    @cached_property
    def tokenization(self) -> Tokenization:
        return Tokenization(
            self.tokenizer,
            # Packing cuts at its own places.
            max_length=None if self.arguments.packing else self.arguments.max_length,
            train_on_prompt=self.arguments.completion_only_loss is False,
            assistant_only_loss=self.config.training.get("assistant_only_loss", False),
        )

    def make_trainer(self, model: Model, arguments: TrainingArguments) -> Trainer:
        return _Trainer(
            adapter=self.config.adapter,
            model=model,
            args=arguments,
            train_dataset=self.datasets["train"],
            eval_dataset=self.datasets["validation"],
            processing_class=self.tokenizer,
        )


class _Trainer(AdapterTrainer, SFTTrainer):
    """TRL's trainer with the learning rates of roles."""
