"""Sequence-to-sequence models with transformers' `Seq2SeqTrainer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, TrainerCallback

from ailora.recipes.config.schema import Seq2SeqConfig
from ailora.recipes.data.language_rows import Row, Rows
from ailora.recipes.data.tokenize_language import Tokenization, complete_tokenizer
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.task_models import load_tokenizer
from ailora.recipes.training.fit import training_arguments
from ailora.recipes.training.language_training import run_language_model
from ailora.recipes.training.role_trainers import AdapterTrainer


def run(config: Seq2SeqConfig, callbacks: Sequence[TrainerCallback] = ()) -> dict[str, Any]:
    """Train and evaluate; the same call after a kill continues, after the end it returns the result again.

    Args:
        config: from `load_config`.
        callbacks: further callbacks of the Trainer.

    Returns:
        What `result.json` holds.

    Raises:
        InputError: bad data, a tokenizer that lacks a token, a folder that holds another run.
        ModelError: the model cannot be adapted as asked.
    """
    if result := RunFolder(config.output).finished(config):
        return result
    tokenization = seq2seq_tokenization(config)
    make_trainer = partial(_Trainer, data_collator=DataCollatorForSeq2Seq(tokenization.tokenizer))
    arguments = training_arguments(config)
    return run_language_model(config, arguments, tokenization, make_trainer=make_trainer, callbacks=callbacks)


@dataclass(frozen=True)
class Seq2SeqTokenization(Tokenization):
    """How rows become what an encoder reads and a decoder writes.

    Attributes:
        max_completion_length: tokens after which a completion is cut, its end included.
    """

    max_completion_length: int = 128

    def dataset(self, rows: Rows) -> Dataset:
        """`input_ids` of the prompt and `labels` of the completion of every row. A text without prompt is both."""
        encoded = [self.encode(row) for row in rows.rows]
        ids, labels = zip(*encoded, strict=True)
        return Dataset.from_dict({"input_ids": list(ids), "labels": list(labels)})

    def encode(self, row: Row) -> tuple[list[int], list[int]]:
        completion = row.reference
        prompt = completion if row.prompt is None else row.prompt
        labels = self.tokenizer(text_target=completion, truncation=True, max_length=self.max_completion_length)
        return self._prompt(prompt), list(labels["input_ids"])

    def prompt_ids(self, row: Row) -> list[int]:
        return self._prompt(row.prompt)

    def _prompt(self, prompt: Any) -> list[int]:
        return list(self.tokenizer(prompt, truncation=True, max_length=self.max_length)["input_ids"])


def seq2seq_tokenization(config: Seq2SeqConfig) -> Seq2SeqTokenization:
    """How rows become tokens.

    Raises:
        InputError: a tokenizer that lacks a token.
    """
    tokenizer = load_tokenizer(config.model)
    complete_tokenizer(tokenizer, name=config.model, chat_template=None, chat=False)
    length = config.data.max_completion_length
    return Seq2SeqTokenization(tokenizer, config.data.max_length, max_completion_length=length)


class _Trainer(AdapterTrainer, Seq2SeqTrainer):
    """transformers' trainer with the learning rates of roles."""
