"""Read rows for language models: texts, prompts with completions, or conversations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from ailora.errors import InputError
from ailora.plain_data import parse_json
from ailora.recipes.config.language_config import (
    TEMPLATE_COLUMNS,
    CausalData,
    MessageColumn,
    MessageTemplate,
    PromptData,
)
from ailora.recipes.config.validation import short_repr
from ailora.recipes.data.classification_rows import read_split, sample_indices
from ailora.recipes.data.readers import Table
from ailora.recipes.data.templates import Template

#: Message for the chat template, with the keys `role`, `content`, and all further keys in the data.
Message = dict[str, Any]
#: Parameters of `apply_chat_template`, which a row may not set through `chat_template_kwargs`. `documents` is allowed,
#: because `apply_chat_template` passes `documents` to the template as a variable.
_RESERVED_VARIABLES = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters.keys() - {"documents"}
#: Keys of a message that may replace `content`.
_CALL_KEYS = ("tool_calls", "function_call")
#: Function (values of a row by column, origin of the row) -> (prompt, completion).
_Reader = Callable[[Mapping[str, object], str], tuple[str | list[Message] | None, str | list[Message]]]


@dataclass(frozen=True)
class Row:
    """Row of a data split: a prompt with its completion, a conversation, or plain text.

    Attributes:
        origin: `file:line` of the row, for error messages.
        prompt: Text, or the messages before the last answer; None for plain text, whose tokens all count in the loss.
        completion: Expected text, or the plain text; for a conversation, all messages up to and including the last
            answer, so also the messages of `prompt`.
        values: Values of the row by column.
        variables: Chat template variables, from the columns `tools` and `chat_template_kwargs`.
    """

    origin: str
    prompt: str | list[Message] | None
    completion: str | list[Message]
    values: dict[str, object]
    variables: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Rows:
    """Rows of a split."""

    rows: list[Row]

    def sample(self, limit: int | None) -> Rows:
        """Return a sample of at most `limit` rows, the same in every run; all rows if `limit` is None."""
        return self if limit is None else Rows([self.rows[i] for i in sample_indices(len(self.rows), limit)])

    def group_by(self, columns: Sequence[str]) -> list[list[Row]]:
        """Group rows with equal values in all given columns.

        Args:
            columns: Column names; if empty, each row is a group.

        Returns:
            The groups, in the order of their first rows.

        Raises:
            InputError: A column is missing, or holds lists or objects.
        """
        if not columns:
            return [[row] for row in self.rows]
        groups: dict[tuple[object, ...], list[Row]] = {}
        for row in self.rows:
            for name in columns:
                if name not in row.values:
                    raise InputError(
                        f"{row.origin}: evaluation.group_by names the column {name!r}, which is missing; the columns "
                        f"are {', '.join(row.values)}"
                    )
            values = [row.values[name] for name in columns]
            for value in values:
                if isinstance(value, list | dict):
                    raise InputError(
                        f"{row.origin}: evaluation.group_by requires columns of text or numbers, got "
                        + short_repr(value)
                    )
            groups.setdefault(tuple(values), []).append(row)
        return list(groups.values())


def load_rows(data: PromptData, split: str, columns: Sequence[str] = ()) -> Rows:
    """Load the rows of a split.

    Args:
        data: Files or dataset, and templates.
        split: `train`, `validation` or `test`.
        columns: Columns to read in addition to those named by `data`.

    Returns:
        All rows of the split.

    Raises:
        InputError: The data are missing or invalid, lack a column, or hold a row without text.
    """
    return to_rows(read_split(data, split, columns), data)


def to_rows(table: Table, data: PromptData, *, complete: bool = True) -> Rows:
    """Convert all rows of a table by filling in templates or reading conversations.

    Args:
        table: Table with the columns named by `data`.
        data: Templates, or the column of conversations.
        complete: Whether to read completions; False leaves completions empty for generation.

    Returns:
        The rows.

    Raises:
        InputError: A column is missing, or a row has no text or no valid messages.
    """
    read = _make_reader(data, complete)
    is_chat = isinstance(data, CausalData) and data.messages is not None
    rows = []
    for values, origin in table.records():
        prompt, completion = read(values, origin)
        variables = _read_variables(values, origin) if is_chat else {}
        rows.append(Row(origin, prompt, completion, values, variables))
    return Rows(rows)


def _read_variables(row: Mapping[str, object], origin: str) -> dict[str, Any]:
    """Read the columns `tools` and `chat_template_kwargs`, which TRL passes to the chat template."""
    tools, variables = (row.get(column) for column in TEMPLATE_COLUMNS)
    if isinstance(tools, str):
        tools = parse_json(tools, f"{origin}: column 'tools'") if tools.strip() else None
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise InputError(
            f"{origin}: column 'tools' holds {short_repr(tools)}, expected a list of objects, or such a list as JSON"
        )
    if variables is not None and not isinstance(variables, Mapping):
        raise InputError(f"{origin}: column 'chat_template_kwargs' holds {short_repr(variables)}, expected an object")
    if reserved := sorted(_RESERVED_VARIABLES & (variables or {}).keys()):
        raise InputError(
            f"{origin}: column 'chat_template_kwargs' sets {reserved[0]!r}, which is not a variable of a chat template"
        )
    # Drop an empty list: Llama's templates announce tools whenever the variable is set.
    return dict(variables or {}) | ({"tools": tools} if tools else {})


def _make_reader(data: PromptData, complete: bool) -> _Reader:
    """Build the function that reads prompt and completion of a row."""
    if data.prompt is not None and data.completion is not None:
        prompt, completion = (
            Template.parse(data.prompt, "data.prompt"),
            Template.parse(data.completion, "data.completion"),
        )
        return lambda row, origin: (prompt.fill(row, origin), completion.fill(row, origin) if complete else "")
    assert isinstance(data, CausalData)
    if data.text is not None:
        text = Template.parse(data.text, "data.text")
        return lambda row, origin: (None, text.fill(row, origin))
    assert data.messages is not None
    read = _make_messages_reader(data.messages, complete)
    if complete:
        return lambda row, origin: _split_conversation(read(row, origin), origin)
    return lambda row, origin: (read(row, origin), [{"role": "assistant", "content": ""}])


def _make_messages_reader(
    source: str | MessageColumn | list[MessageTemplate], complete: bool
) -> Callable[[Mapping[str, object], str], list[Message]]:
    """Build the function that reads the messages of a row. Unless `complete`, a final answer is left out."""
    if isinstance(source, list):
        # Data for generation may lack the columns of the answer.
        drops_answer = not complete and source[-1].role == "assistant"
        templates = [
            (message.role, Template.parse(message.content, f"data.messages[{number}].content"))
            for number, message in enumerate(source[:-1] if drops_answer else source)
        ]
        return lambda row, origin: [{"role": role, "content": text.fill(row, origin)} for role, text in templates]
    column = MessageColumn(column=source) if isinstance(source, str) else source

    def read(row: Mapping[str, object], origin: str) -> list[Message]:
        messages = _read_messages(row, column, origin)
        return messages[:-1] if not complete and messages[-1]["role"] == "assistant" else messages

    return read


def _read_messages(row: Mapping[str, object], source: MessageColumn, origin: str) -> list[Message]:
    if source.column not in row:
        raise InputError(
            f"{origin}: data.messages names the column {source.column!r}, which is missing; the columns are "
            + ", ".join(row)
        )
    messages = row[source.column]
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError(
            f"{origin}: column {source.column!r} holds {short_repr(messages)}, expected a list of messages"
        )
    return [_read_message(message, source, origin) for message in messages]


def _read_message(message: object, source: MessageColumn, origin: str) -> Message:
    """Read the role and content of a message, and copy all further keys."""
    calls_tool = isinstance(message, Mapping) and any(message.get(key) for key in _CALL_KEYS)
    required = {source.role} if calls_tool else {source.role, source.content}
    if not isinstance(message, Mapping) or not required <= message.keys():
        keys = f"{source.role} and {source.content}"
        raise InputError(
            f"{origin}: a message of {source.column!r} is {short_repr(message)}, expected an object with {keys}; "
            "to name different keys, set data.messages: {column: ..., role: ..., content: ...}"
        )
    role, content = message[source.role], message.get(source.content)
    if not isinstance(role, str) or not role.strip():
        raise InputError(f"{origin}: a message of {source.column!r} has the role {short_repr(role)}, expected text")
    if not isinstance(content, str) and not (calls_tool and content is None):
        raise InputError(
            f"{origin}: a message of {source.column!r} has the content {short_repr(content)}, expected text"
        )
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls)):
        raise InputError(
            f"{origin}: a message of {source.column!r} has the tool_calls {short_repr(calls)}, "
            "expected a list of objects"
        )
    # Drop null values: Parquet gives every message the keys of all messages, with null for absent keys.
    other_items = {
        key: value
        for key, value in message.items()
        if value is not None and key not in (source.role, source.content, "role", "content")
    }
    return {"role": source.names.get(role, role), "content": content, **other_items}


def _split_conversation(messages: list[Message], origin: str) -> tuple[list[Message], list[Message]]:
    """Return the messages before the last answer, and the messages including that answer."""
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise InputError(
            f"{origin}: expected a message with the role assistant, got the roles {', '.join(dict.fromkeys(roles))}; "
            "map different roles with data.messages: {column: ..., names: {gpt: assistant}}"
        )
    end = len(roles) - roles[::-1].index("assistant")
    return messages[: end - 1], messages[:end]
