"""Recipe for causal language models, trained with TRL's `SFTTrainer`."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl.data_utils import pack_dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from ailora.recipes.config.schema import CausalLMConfig
from ailora.recipes.data.tokenize_language import Tokenization, prepare_tokenizer
from ailora.recipes.language_model import LanguageRecipe
from ailora.recipes.position_limits import count_tokens
from ailora.recipes.recipe import Model
from ailora.recipes.task_models import load_tokenizer
from ailora.recipes.training.role_trainers import AdapterTrainer


class _Trainer(AdapterTrainer, SFTTrainer):
    """`SFTTrainer` with learning rates by role."""

    def __init__(self, *, model: Model, **arguments: Any) -> None:
        # TRL casts all trainable parameters of a quantized model to bfloat16. Restore the dtype of modules trained in
        # full: TRL's loss converts dtypes, but a plain forward pass needs the dtype of the base's activations.
        dtypes = {name: p.dtype for name, p in model.named_parameters() if ".modules_to_save." in name}
        super().__init__(model=model, **arguments)
        for name, dtype in dtypes.items():
            parameter = model.get_parameter(name)
            parameter.data = parameter.data.to(dtype)


class CausalLMRecipe(LanguageRecipe[CausalLMConfig]):
    """Recipe for causal models on texts, prompts with completions, or conversations."""

    trainer_class: ClassVar[type[AdapterTrainer]] = _Trainer
    length_key: ClassVar[str] = "training.max_length"

    def count_positions(self, dataset: Dataset) -> list[int]:
        """Return the number of positions that each row occupies during training, which depends on packing."""
        lengths, arguments = count_tokens(dataset), self.arguments
        if not arguments.packing or arguments.max_length is None:
            return lengths
        # "wrapped" joins all rows and numbers positions through each packed row. The other strategies restart the
        # positions with each row, and truncate or split rows longer than `max_length`.
        if arguments.packing_strategy == "wrapped":
            return [min(sum(lengths), arguments.max_length)] * len(lengths)
        return [min(length, arguments.max_length) for length in lengths]

    def pack(self, dataset: Dataset) -> Dataset:
        """Return the rows of an epoch: tokenized rows, packed as TRL packs them if `training.packing` is set."""
        arguments = self.arguments
        if not arguments.packing or arguments.max_length is None:
            return dataset
        return pack_dataset(dataset, arguments.max_length, arguments.packing_strategy)

    @cached_property
    def arguments(self) -> SFTConfig:
        arguments = super().arguments
        assert isinstance(arguments, SFTConfig)
        # The rows already have labels; with this option, TRL would expect conversations.
        arguments.assistant_only_loss = False
        return arguments

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        config = self.config
        tokenizer = load_tokenizer(config.model)
        chat = config.data.messages is not None
        prepare_tokenizer(tokenizer, name=config.model, chat_template=config.data.chat_template, chat=chat)
        return tokenizer

    @property
    def _keeps_all_tokens(self) -> bool:
        """Whether packing splits rows longer than a packed row, instead of truncating them."""
        return self.arguments.packing and self.arguments.packing_strategy != "bfd"

    @cached_property
    def tokenization(self) -> Tokenization:
        return Tokenization(
            self.tokenizer,
            max_length=None if self._keeps_all_tokens else self.arguments.max_length,
            # None, TRL's default, excludes prompts from the loss.
            train_on_prompt=self.arguments.completion_only_loss is False,
            assistant_only_loss=self.config.training.get("assistant_only_loss", False),
        )
