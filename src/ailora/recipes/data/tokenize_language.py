"""Tokenize rows for language models, and label the tokens in the loss.

Token ids and labels are the same as from `SFTTrainer` in TRL 1.16. TRL tokenizes rows after loading the model, and
silently drops rows without a completion. This module validates all rows before a model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any

from datasets import Dataset
from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from ailora.errors import InputError
from ailora.formatting import shorten
from ailora.path_kind import expand_home, is_file
from ailora.plain_data import read_text
from ailora.recipes.config.validation import short_repr
from ailora.recipes.data.language_rows import Message, Row, Rows

#: Label of tokens outside the loss: the default `ignore_index` of PyTorch's cross entropy.
IGNORE_INDEX = -100
_WORD = re.compile(r"\w+")
#: Alternative keys for the reasoning in a message; transformers copies the value of one key to all of them.
_REASONING_KEYS = frozenset({"reasoning_content", "reasoning", "thinking"})
#: Keys of a message, in addition to `content`, whose values are content for the model.
_CONTENT_KEYS = _REASONING_KEYS | {"tool_calls", "function_call"}
#: Keys for the loss weight of a message in the formats of OpenAI, Axolotl and ms-swift. TRL ignores these keys.
_LOSS_KEYS = frozenset({"weight", "train", "training", "loss"})
_TEMPLATE_SUFFIXES = (".jinja", ".jinja2", ".j2", ".txt")


@dataclass(frozen=True)
class Tokenization:
    """Tokenizer of a language model, with settings for truncation and loss.

    Attributes:
        tokenizer: Tokenizer of the model.
        max_length: Maximum number of tokens per row; longer rows are truncated. None disables truncation.
        train_on_prompt: Whether the loss includes prompts.
        assistant_only_loss: Whether the loss includes assistant messages only.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = None
    train_on_prompt: bool = False
    assistant_only_loss: bool = False

    def tokenize(self, rows: Rows) -> Dataset:
        """Tokenize rows.

        Args:
            rows: Texts, prompts with completions, or conversations.

        Returns:
            Dataset with the `input_ids` and `labels` of each row, truncated to `max_length` and not padded.

        Raises:
            InputError: A row has no token in the loss, before or after truncation. The message names files and lines.
        """
        encoded = [self.encode(row) for row in rows.rows]
        if origins := _format_masked_origins(rows, encoded):
            raise InputError(
                f"{origins}: the loss would include no token; remove these rows, or lengthen their texts. With "
                "training.assistant_only_loss, the chat template must mark answers with {% generation %}"
            )
        truncated = [self._truncate(ids, labels) for ids, labels in encoded]
        if origins := _format_masked_origins(rows, truncated):
            raise InputError(
                f"{origins}: truncation to {self.max_length} tokens removes the completion; increase "
                "training.max_length, shorten the prompts, or remove these rows"
            )
        return to_dataset(truncated)

    def encode(self, row: Row) -> tuple[list[int], list[int]]:
        """Convert a row to token ids and labels.

        Args:
            row: Text, prompt with completion, or conversation.

        Returns:
            Token ids and labels of equal length, not truncated; labels outside the loss are -100.

        Raises:
            InputError: The chat template fails on the row, or ignores a part of its content.
        """
        if isinstance(row.completion, list):
            return self._encode_conversation(row, row.completion)
        if row.prompt is None:
            ids = self._encode_text(self._append_eos(row.completion))
            return ids, list(ids)
        assert isinstance(row.prompt, str)
        ids = self._encode_text(row.prompt + self._append_eos(row.completion))
        return ids, self._make_labels(ids, self._encode_text(row.prompt))

    def encode_prompt(self, row: Row) -> list[int]:
        """Return the token ids of a row's prompt, as input for generation. `row.prompt` must not be None."""
        assert row.prompt is not None
        return (
            self._encode_text(row.prompt)
            if isinstance(row.prompt, str)
            else self._encode_messages_prompt(row, row.prompt)
        )

    def reference_text(self, row: Row) -> str:
        """Return the completion of a row as text; the chat template formats tool calls and reasoning."""
        if isinstance(row.completion, str):
            return row.completion
        answer = row.completion[-1]
        if not any(answer.get(key) for key in _CONTENT_KEYS):
            return answer["content"]
        assert isinstance(row.prompt, list)
        # The completion of a conversation begins with the messages of the prompt, whose tokens are removed.
        ids, prompt_ids = self._encode_messages(row, row.completion), self._encode_messages_prompt(row, row.prompt)
        return str(self.tokenizer.decode(ids[_common_prefix_length(ids, prompt_ids) :], skip_special_tokens=True))

    def _encode_conversation(self, row: Row, messages: list[Message]) -> tuple[list[int], list[int]]:
        self._validate_template(row, messages)
        if not self.assistant_only_loss:
            ids = self._encode_messages(row, messages)
            return ids, list(ids)
        template = self._load_marked_template()
        encoded = self._render(row, messages, return_assistant_tokens_mask=True, chat_template=template)
        ids, mask = list(encoded["input_ids"]), encoded["assistant_masks"]
        return ids, [token if counted else IGNORE_INDEX for token, counted in zip(ids, mask, strict=True)]

    def _make_labels(self, ids: list[int], prompt_ids: list[int]) -> list[int]:
        """Return the labels of a row: its token ids, with -100 for the prompt unless `train_on_prompt` is set."""
        if self.train_on_prompt:
            return list(ids)
        # Tokenizers may merge the end of the prompt with the start of the completion, so the loss begins at the first
        # token that differs from the prompt.
        prompt_length = _common_prefix_length(ids, prompt_ids)
        return [IGNORE_INDEX] * prompt_length + ids[prompt_length:]

    def _encode_text(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def _append_eos(self, text: str) -> str:
        eos = str(self.tokenizer.eos_token)
        return text if text.endswith(eos) else text + eos

    def _encode_messages_prompt(self, row: Row, prompt: list[Message]) -> list[int]:
        return list(self._render(row, prompt, add_generation_prompt=True)["input_ids"])

    def _encode_messages(self, row: Row, messages: list[Message]) -> list[int]:
        return list(self._render(row, messages)["input_ids"])

    def _render(self, row: Row, messages: list[Message], **options: object) -> Mapping[str, Any]:
        arguments: dict[str, Any] = {"tokenize": True, "return_dict": True, **row.variables, **options}
        try:
            encoded: Any = self.tokenizer.apply_chat_template(messages, **arguments)
            return encoded
        except TemplateSyntaxError as error:
            raise InputError(
                f"the chat template has a syntax error in line {error.lineno}: {error.message}; correct "
                "data.chat_template or the tokenizer's chat template"
            ) from None
        # A template can raise any exception of Python, for example by adding None to text, or by recursion.
        except Exception as error:
            roles = ", ".join(message["role"] for message in messages)
            raise InputError(
                f"{row.origin}: the chat template fails on this conversation with the roles {shorten(roles, 80)}: "
                f"{type(error).__name__}: {shorten(str(error), 200)}"
            ) from None

    def _validate_template(self, row: Row, messages: list[Message]) -> None:
        """Validate that the chat template uses all content of a row, and that the loss weights fit the configuration.

        Identifiers (`id`, `name`, `tool_call_id`) are not content, so a template may ignore them.
        """
        words = _find_words(self.tokenizer.get_chat_template(tools=row.variables.get("tools")))
        ignored = sorted(row.variables.keys() - words)
        filled_keys = {key for message in messages for key, value in message.items() if value}
        for key in sorted(filled_keys & _CONTENT_KEYS):
            synonyms = _REASONING_KEYS if key in _REASONING_KEYS else {key}
            if not words & synonyms:
                # A template may write whole messages without naming keys: compare the tokens with and without the key.
                reduced = [{name: value for name, value in message.items() if name != key} for message in messages]
                if self._encode_messages(row, messages) == self._encode_messages(row, reduced):
                    ignored.append(key)
        if ignored:
            raise InputError(
                f"{row.origin}: the chat template ignores {ignored[0]!r}; set a data.chat_template that uses "
                f"{ignored[0]!r}, or remove {ignored[0]!r} from the data"
            )
        for message in messages:
            self._validate_loss_weight(row, message, words)

    def _validate_loss_weight(self, row: Row, message: Message, template_words: frozenset[str]) -> None:
        """Validate that a message's loss weight fits the configuration, unless the chat template reads the weight."""
        in_loss = message["role"] == "assistant" or not self.assistant_only_loss
        for key in sorted((_LOSS_KEYS & message.keys()) - template_words):
            # A weight is a boolean or a number; in Python, True equals 1.
            if message[key] != in_loss:
                raise InputError(
                    f"{row.origin}: a message with the role {message['role']!r} has {key} {short_repr(message[key])}, "
                    f"but the loss {'includes' if in_loss else 'excludes'} the message; change "
                    f"training.assistant_only_loss, or remove {key!r} from the data"
                )

    def _load_marked_template(self) -> str:
        """Return the chat template with `{% generation %}` marks around the messages of the assistant."""
        template = str(self.tokenizer.chat_template)
        if has_generation_markers(template):
            return template
        try:
            return str(get_training_chat_template(self.tokenizer))
        except ValueError as error:
            raise InputError(
                "training.assistant_only_loss requires a chat template with {% generation %} marks, but neither the "
                f"tokenizer nor TRL has such a template; set data.chat_template ({error})"
            ) from None

    def _truncate(self, ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
        return ids[: self.max_length], labels[: self.max_length]


@cache
def _find_words(template: str) -> frozenset[str]:
    """Return all words in the source of a template, including the names of keys and variables."""
    return frozenset(_WORD.findall(template))


def _common_prefix_length(ids: list[int], others: list[int]) -> int:
    """Return the length of the common prefix of two lists of token ids."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, others, strict=False)))


def _format_masked_origins(rows: Rows, encoded: Sequence[tuple[list[int], list[int]]]) -> str:
    """Format the origins of rows without a token in the loss; empty if there are none."""
    origins = [
        row.origin for row, (_, labels) in zip(rows.rows, encoded, strict=True) if not has_trainable_tokens(labels)
    ]
    return ", ".join(origins[:3]) + (f" and {len(origins) - 3} more rows" if len(origins) > 3 else "")


def to_dataset(encoded: Iterable[tuple[list[int], list[int]]]) -> Dataset:
    """Build a dataset with the columns `input_ids` and `labels`."""
    ids, labels = zip(*encoded, strict=True)
    return Dataset.from_dict({"input_ids": list(ids), "labels": list(labels)})


def has_trainable_tokens(labels: Sequence[int]) -> bool:
    """Return whether the loss includes any token of a row with these labels."""
    # The first token of a row is never predicted, so its label does not count.
    return any(label != IGNORE_INDEX for label in labels[1:])


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase, *, name: str, chat_template: str | None = None, chat: bool = False
) -> None:
    """Set the chat template and the padding side of a tokenizer, and validate the tokenizer for training.

    Args:
        tokenizer: Tokenizer of the model, modified in place.
        name: Name of the model, for error messages.
        chat_template: Path of a Jinja file, or a template; None keeps the tokenizer's chat template.
        chat: Whether the data are conversations.

    Raises:
        InputError: The file cannot be read, or the tokenizer lacks an end-of-text token, a padding token or, for
            conversations, a chat template.
    """
    if tokenizer.eos_token is None:
        raise InputError(
            f"the tokenizer of {name!r} has no end-of-text token, but every text must end with such a token; set "
            "eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token is None:
        raise InputError(f"the tokenizer of {name!r} has no padding token; set pad_token in its tokenizer_config.json")
    # With padding on the left, the positions of a row's tokens would depend on the longest row of the batch. Generation
    # pads its prompts on the left regardless of this setting.
    tokenizer.padding_side = "right"
    if chat_template is not None:
        file = expand_home(chat_template)
        exists = is_file(file)
        # Text without braces must be a path: as a template, it would format every conversation as the same text.
        if not exists and ("{" not in chat_template or file.suffix in _TEMPLATE_SUFFIXES):
            raise InputError(f"data.chat_template: no such file: {shorten(chat_template, 500)}")
        tokenizer.chat_template = read_text(file, kind="data.chat_template ") if exists else chat_template
    if chat and not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer of {name!r} has no chat template, but data.messages requires a chat template; set "
            "data.chat_template, or replace data.messages by data.prompt and data.completion"
        )
