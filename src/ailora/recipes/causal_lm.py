"""Recipe of causal language models, with TRL's `SFTTrainer`."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from ailora.recipes.config.schema import CausalLMConfig
from ailora.recipes.data.tokenize_language import Tokenization, prepare_tokenizer
from ailora.recipes.language_model import LanguageRecipe
from ailora.recipes.position_limits import lengths_of
from ailora.recipes.recipe import Model
from ailora.recipes.task_models import load_tokenizer
from ailora.recipes.training.role_trainers import AdapterTrainer


class _Trainer(AdapterTrainer, SFTTrainer):
    """`SFTTrainer` with learning rates by role."""

    def __init__(self, *, model: Model, **arguments: Any) -> None:
        # TRL casts all trainable parameters of a quantized model to bfloat16. Modules that are trained whole keep the
        # dtype of the base's activations: TRL's loss converts between the two, a plain forward pass does not.
        dtypes = {name: p.dtype for name, p in model.named_parameters() if ".modules_to_save." in name}
        super().__init__(model=model, **arguments)
        for name, dtype in dtypes.items():
            parameter = model.get_parameter(name)
            parameter.data = parameter.data.to(dtype)


class CausalLMRecipe(LanguageRecipe[CausalLMConfig]):
    """Recipe that trains a causal model on texts, prompts with completions, or conversations."""

    trainer_class: ClassVar[type[AdapterTrainer]] = _Trainer
    length_key: ClassVar[str] = "training.max_length"

    def trained_lengths(self, dataset: Dataset) -> list[int]:
        """Packed rows are cut as they are packed, and share their positions where they are wrapped."""
        lengths, arguments = lengths_of(dataset), self.arguments
        if not arguments.packing or arguments.max_length is None:
            return lengths
        whole = sum(lengths) if arguments.packing_strategy == "wrapped" else 0
        return [min(max(length, whole), arguments.max_length) for length in lengths]

    @cached_property
    def arguments(self) -> SFTConfig:
        arguments = super().arguments
        assert isinstance(arguments, SFTConfig)
        # Rows reach the trainer with labels; with this option it would look for conversations.
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
            # Packing truncates rows itself, at the length of a packed row.
            max_length=None if self.arguments.packing else self.arguments.max_length,
            train_on_prompt=self.arguments.completion_only_loss is False,
            assistant_only_loss=self.config.training.get("assistant_only_loss", False),
        )
