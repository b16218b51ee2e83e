"""Rows as a language model takes them: token ids, and labels where the loss counts.

It follows the preparation of TRL's `SFTTrainer` (1.16), which drops rows without a completion in silence and needs the
model: here rows are checked before a model is loaded. A test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from datasets import Dataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from ailora.errors import InputError
from ailora.recipes.data.language_rows import Message, Row, Rows

IGNORE_INDEX = -100


@dataclass(frozen=True)
class Tokenization:
    """How rows become tokens.

    Attributes:
        tokenizer: the model's.
        max_length: tokens after which a row is cut; None: never.
        train_on_prompt: whether the loss counts on prompts too.
        assistant_only_loss: whether the loss counts on the assistant's messages only.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = None
    train_on_prompt: bool = False
    assistant_only_loss: bool = False

    def dataset(self, rows: Rows) -> Dataset:
        """Tokenize every row: `input_ids` and `labels`, cut to the length and not padded.

        Raises:
            InputError: rows of which nothing is left to learn, by file and line.
        """
        encoded = [self._cut(*self.encode(row)) for row in rows.rows]
        if bare := [
            row.where for row, (_, labels) in zip(rows.rows, encoded, strict=True) if not has_trainable_tokens(labels)
        ]:
            more = f" and {len(bare) - 3} more rows" if len(bare) > 3 else ""
            raise InputError(
                f"{', '.join(bare[:3])}{more}: nothing of the completion is left in {self.max_length} tokens: "
                "give a larger training.max_length, shorter prompts, or remove these rows"
            )
        return to_dataset(encoded)

    def encode(self, row: Row) -> tuple[list[int], list[int]]:
        """Token ids of a row and its labels, not cut; -100 where the loss does not count."""
        if isinstance(row.completion, list):
            return self._conversation(row)
        if row.prompt is None:
            ids = self._ids(self._ended(row.completion))
            return ids, list(ids)
        assert isinstance(row.prompt, str)
        ids = self._ids(row.prompt + self._ended(row.completion))
        return ids, self._labels(ids, self._ids(row.prompt))

    def prompt_ids(self, row: Row) -> list[int]:
        """The tokens that a completion is generated from."""
        assert row.prompt is not None
        return self._ids(row.prompt) if isinstance(row.prompt, str) else self._chat(row.prompt, prompt=True)

    def _conversation(self, row: Row) -> tuple[list[int], list[int]]:
        messages = row.completion
        assert isinstance(messages, list)
        if not self.assistant_only_loss:
            ids = self._chat(messages)
            return ids, list(ids)
        encoded = self._rendered(messages, return_assistant_tokens_mask=True, chat_template=self._marked_template())
        ids = list(encoded["input_ids"])
        counted = encoded["assistant_masks"]
        return ids, [token if count else IGNORE_INDEX for token, count in zip(ids, counted, strict=True)]

    def _labels(self, ids: list[int], prompt: list[int]) -> list[int]:
        """Tokens may merge across the end of the prompt: what follows is trained from where the two part."""
        if self.train_on_prompt:
            return list(ids)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, prompt, strict=False)))
        return [IGNORE_INDEX] * shared + ids[shared:]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def _ended(self, text: str) -> str:
        end = str(self.tokenizer.eos_token)
        return text if text.endswith(end) else text + end

    def _chat(self, messages: list[Message], *, prompt: bool = False) -> list[int]:
        return list(self._rendered(messages, add_generation_prompt=prompt)["input_ids"])

    def _rendered(self, messages: list[Message], **options: Any) -> Any:
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise InputError(f"the chat template refuses a conversation of the roles {roles}: {error}") from None

    def _marked_template(self) -> str:
        """A template that says which tokens are the assistant's."""
        template = str(self.tokenizer.chat_template)
        if has_generation_markers(template):
            return template
        try:
            return str(get_training_chat_template(self.tokenizer))
        except ValueError as error:
            raise InputError(
                "training.assistant_only_loss needs a chat template with {% generation %} marks, and TRL knows none "
                f"for this one: give data.chat_template ({error})"
            ) from None

    def _cut(self, ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
        return ids[: self.max_length], labels[: self.max_length]


def to_dataset(encoded: Iterable[tuple[list[int], list[int]]]) -> Dataset:
    """Make a data set of token ids and labels."""
    ids, labels = zip(*encoded, strict=True)
    return Dataset.from_dict({"input_ids": list(ids), "labels": list(labels)})


def has_trainable_tokens(labels: Sequence[int]) -> bool:
    """Whether the loss counts anywhere: the first token of a row is predicted by none."""
    return any(label != IGNORE_INDEX for label in labels[1:])


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase, *, name: str, chat_template: str | None = None, chat: bool = False
) -> None:
    """Give a tokenizer the chat template of the configuration, and refuse one that lacks what training needs.

    Args:
        tokenizer: the model's.
        name: the model's, for messages.
        chat_template: a Jinja file or the template itself; None for the tokenizer's.
        chat: whether conversations are trained.

    Raises:
        InputError: no end-of-text or padding token, no chat template.
    """
    if tokenizer.eos_token is None:
        raise InputError(
            f"the tokenizer of {name!r} has no end-of-text token, which ends every text: set eos_token in its "
            "tokenizer_config.json"
        )
    if tokenizer.pad_token is None:
        raise InputError(f"the tokenizer of {name!r} has no padding token: set pad_token in its tokenizer_config.json")
    if chat_template is not None:
        file = Path(chat_template).expanduser()
        named = len(chat_template) < 1000 and file.suffix in (".jinja", ".j2", ".txt")
        if named and not file.is_file():
            raise InputError(f"data.chat_template: there is no file {chat_template}")
        tokenizer.chat_template = file.read_text(encoding="utf-8") if named else chat_template
    if chat and not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer of {name!r} has no chat template, which data.messages needs: give data.chat_template, or "
            "data.prompt and data.completion"
        )
