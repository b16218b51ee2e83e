"""Recipe for sequence-to-sequence models, trained with transformers' `Seq2SeqTrainer`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer

from ailora.recipes.config.schema import Seq2SeqConfig
from ailora.recipes.data.language_rows import Row, Rows
from ailora.recipes.data.tokenize_language import Tokenization, to_dataset
from ailora.recipes.language_model import LanguageRecipe
from ailora.recipes.position_limits import count_tokens
from ailora.recipes.recipe import Model
from ailora.recipes.training.role_trainers import AdapterTrainer


@dataclass(frozen=True)
class Seq2SeqTokenization(Tokenization):
    """Tokenizer of a sequence-to-sequence model: prompts for the encoder, completions for the decoder.

    Attributes:
        max_completion_length: Maximum number of tokens per completion, including the end-of-text token; longer
            completions are truncated.
    """

    max_completion_length: int = 128

    def tokenize(self, rows: Rows) -> Dataset:
        """Tokenize prompts as `input_ids` and completions as `labels`. Plain text is both prompt and completion."""
        return to_dataset([self.encode(row) for row in rows.rows])

    def encode(self, row: Row) -> tuple[list[int], list[int]]:
        """Return the token ids of the prompt, and those of the completion as labels, both truncated."""
        completion = self.reference_text(row)
        prompt = completion if row.prompt is None else row.prompt
        labels = self.tokenizer(text_target=completion, truncation=True, max_length=self.max_completion_length)
        return self._tokenize_prompt(prompt), list(labels["input_ids"])

    def encode_prompt(self, row: Row) -> list[int]:
        return self._tokenize_prompt(row.prompt)

    def _tokenize_prompt(self, prompt: Any) -> list[int]:  # noqa: ANN401 (`Row.prompt` may be a chat; here it is text)
        return list(self.tokenizer(prompt, truncation=True, max_length=self.max_length)["input_ids"])


class _Trainer(AdapterTrainer, Seq2SeqTrainer):
    """`Seq2SeqTrainer` with learning rates by role."""


class Seq2SeqRecipe(LanguageRecipe[Seq2SeqConfig]):
    """Recipe for encoder-decoder models on prompts with completions."""

    trainer_class: ClassVar[type[AdapterTrainer]] = _Trainer

    length_key: ClassVar[str] = "data.max_length"

    def _tokenize(self, rows: Rows, count_positions: Callable[[Dataset], list[int]] = count_tokens) -> Dataset:
        dataset = super()._tokenize(rows, count_positions)
        lengths, origins = count_tokens(dataset, "labels"), [row.origin for row in rows.rows]
        self.position_limits.validate(lengths, origins, remedy="data.max_completion_length", is_output=True)
        return dataset

    @cached_property
    def tokenization(self) -> Seq2SeqTokenization:
        data = self.config.data
        return Seq2SeqTokenization(self.tokenizer, data.max_length, max_completion_length=data.max_completion_length)

    def make_collator(self, model: Model) -> DataCollatorForSeq2Seq:
        # The model derives the inputs of its decoder from the labels, but with label smoothing, the Trainer withholds
        # the labels from the model. Given `model`, the collator derives the decoder inputs instead.
        return DataCollatorForSeq2Seq(self.tokenizer, model=model if self.arguments.label_smoothing_factor else None)
