"""Rows as a language model takes them: token ids, and labels where the loss counts.

It follows the preparation of TRL's `SFTTrainer` (1.16), which drops rows without a completion in silence and needs the
model: here rows are checked before a model is loaded. A test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from datasets import Dataset
from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from ailora.errors import InputError
from ailora.formatting import shorten
from ailora.plain_data import read_text
from ailora.recipes.config.schema import shown
from ailora.recipes.data.language_rows import Message, Row, Rows

IGNORE_INDEX = -100
_WORD = re.compile(r"\w+")
#: Names for what a model thinks before it answers: transformers copies each of them under the others.
_REASONING_KEYS = frozenset({"reasoning_content", "reasoning", "thinking"})
#: Keys of a message that hold a part of what it says, beside its text.
_CONTENT_KEYS = _REASONING_KEYS | {"tool_calls", "function_call"}
#: Keys by which data of OpenAI, Axolotl and ms-swift say whether the loss counts on a message; TRL reads none of them.
_LOSS_KEYS = frozenset({"weight", "train", "training", "loss"})


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
            return self._conversation(row, row.completion)
        if row.prompt is None:
            ids = self._ids(self._ended(row.completion))
            return ids, list(ids)
        assert isinstance(row.prompt, str)
        ids = self._ids(row.prompt + self._ended(row.completion))
        return ids, self._labels(ids, self._ids(row.prompt))

    def prompt_ids(self, row: Row) -> list[int]:
        """The tokens that a completion is generated from."""
        assert row.prompt is not None
        return self._ids(row.prompt) if isinstance(row.prompt, str) else self._prompt_ids(row, row.prompt)

    def reference(self, row: Row) -> str:
        """Return the text that is to be written: of an answer that is more than text, as the template writes it."""
        if isinstance(row.completion, str):
            return row.completion
        answer = row.completion[-1]
        if not any(answer.get(key) for key in _CONTENT_KEYS):
            return answer["content"]
        assert isinstance(row.prompt, list)
        ids, prompt = self._chat_ids(row, row.completion), self._prompt_ids(row, row.prompt)
        return str(self.tokenizer.decode(ids[_common_length(ids, prompt) :], skip_special_tokens=True))

    def _conversation(self, row: Row, messages: list[Message]) -> tuple[list[int], list[int]]:
        self._validate_read(row, messages)
        if not self.assistant_only_loss:
            ids = self._chat_ids(row, messages)
            return ids, list(ids)
        encoded = self._render(row, messages, return_assistant_tokens_mask=True, chat_template=self._marked_template())
        ids = list(encoded["input_ids"])
        counted = encoded["assistant_masks"]
        return ids, [token if count else IGNORE_INDEX for token, count in zip(ids, counted, strict=True)]

    def _labels(self, ids: list[int], prompt: list[int]) -> list[int]:
        """Tokens may merge across the end of the prompt: what follows is trained from where the two part."""
        if self.train_on_prompt:
            return list(ids)
        shared = _common_length(ids, prompt)
        return [IGNORE_INDEX] * shared + ids[shared:]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def _ended(self, text: str) -> str:
        end = str(self.tokenizer.eos_token)
        return text if text.endswith(end) else text + end

    def _prompt_ids(self, row: Row, prompt: list[Message]) -> list[int]:
        return list(self._render(row, prompt, add_generation_prompt=True)["input_ids"])

    def _chat_ids(self, row: Row, messages: list[Message]) -> list[int]:
        return list(self._render(row, messages)["input_ids"])

    def _render(self, row: Row, messages: list[Message], **options: Any) -> Any:
        options = {"tokenize": True, "return_dict": True, **row.variables, **options}
        try:
            return self.tokenizer.apply_chat_template(messages, **options)
        except TemplateSyntaxError as error:
            raise InputError(
                f"the chat template has a mistake in its line {error.lineno}: {error.message}; correct "
                "data.chat_template, or the tokenizer's"
            ) from None
        # A template can fail in any way that Python does: it adds None to a text, divides by zero, calls itself.
        except Exception as error:
            roles = ", ".join(message["role"] for message in messages)
            raise InputError(
                f"{row.where}: the chat template refuses this conversation of the roles {shorten(roles, 80)}: "
                f"{type(error).__name__}: {shorten(str(error), 200)}"
            ) from None

    def _validate_read(self, row: Row, messages: list[Message]) -> None:
        """Refuse a row of which the template leaves out what changes its meaning, or that wants another loss."""
        names = _words(self.tokenizer.get_chat_template(tools=row.variables.get("tools")))
        ignored = sorted(row.variables.keys() - names)
        for key in sorted({key for message in messages for key, value in message.items() if value} & _CONTENT_KEYS):
            if not names & (_REASONING_KEYS if key in _REASONING_KEYS else {key}):
                # A template may write whole messages, whatever their keys.
                without = [{name: value for name, value in message.items() if name != key} for message in messages]
                ignored += [key] if self._chat_ids(row, messages) == self._chat_ids(row, without) else []
        if ignored:
            raise InputError(
                f"{row.where}: the chat template writes nothing of {ignored[0]}: give a data.chat_template that does, "
                "or leave it out of the data"
            )
        for message in messages:
            self._validate_loss(row, message, names)

    def _validate_loss(self, row: Row, message: Message, names: frozenset[str]) -> None:
        """Refuse a message whose own word about the loss is not what the run does."""
        counted = message["role"] == "assistant" or not self.assistant_only_loss
        for key in sorted((_LOSS_KEYS & message.keys()) - names):
            if message[key] not in (int(counted), counted):
                raise InputError(
                    f"{row.where}: a message of the role {message['role']} has {key} {shown(message[key])}, but the "
                    f"loss {'counts' if counted else 'does not count'} on it: set training.assistant_only_loss, "
                    f"or leave out {key}"
                )

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


@cache
def _words(template: str) -> frozenset[str]:
    """Return the words of a template: all keys and variables that it reads are among them."""
    return frozenset(_WORD.findall(template))


def _common_length(ids: list[int], others: list[int]) -> int:
    """Count the tokens before the first that differs."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, others, strict=False)))


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
        tokenizer.chat_template = read_text(file, kind="data.chat_template ") if named else chat_template
    if chat and not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer of {name!r} has no chat template, which data.messages needs: give data.chat_template, or "
            "data.prompt and data.completion"
        )
