"""From tables to what a language model reads and writes: text, a prompt with a completion, or a conversation."""

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
from ailora.recipes.config.schema import shown
from ailora.recipes.data.classification_rows import read_split, sample_indices
from ailora.recipes.data.readers import Table
from ailora.recipes.data.templates import Template

#: A message as the chat template takes it: `role`, `content`, and whatever else the data say of it.
Message = dict[str, Any]
#: Arguments of the tokenizer, which a row does not decide.
_RESERVED_VARIABLES = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters.keys() - {"documents"}
#: Keys of a message that says something without a text.
_WORDLESS_KEYS = ("tool_calls", "function_call")
#: Reads prompt and completion of a row, given its columns and its origin.
_Reader = Callable[[Mapping[str, object], str], tuple[str | list[Message] | None, str | list[Message]]]


@dataclass(frozen=True)
class Row:
    """One row of a split. Either a whole, or a prompt with its completion.

    Attributes:
        where: the row's origin, for messages.
        prompt: what is given: a text, or the messages before the last; None: the whole is trained.
        completion: what is to be written: a text, or the whole conversation where `prompt` has messages.
        values: the columns of the row.
        variables: what the chat template is given beside the messages: `tools`, and variables of its own.
    """

    where: str
    prompt: str | list[Message] | None
    completion: str | list[Message]
    values: dict[str, object]
    variables: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Rows:
    """The rows of a split."""

    rows: list[Row]

    def cut(self, limit: int | None) -> Rows:
        """So many rows, in their order; which ones does not depend on the run's seed."""
        return self if limit is None else Rows([self.rows[i] for i in sample_indices(len(self.rows), limit)])

    def grouped(self, columns: Sequence[str]) -> list[list[Row]]:
        """Rows that agree in the columns, together; without columns, every row alone.

        Raises:
            InputError: a column that the data do not have, or that holds lists or objects.
        """
        if not columns:
            return [[row] for row in self.rows]
        groups: dict[tuple[object, ...], list[Row]] = {}
        for row in self.rows:
            for name in columns:
                if name not in row.values:
                    raise InputError(
                        f"{row.where}: evaluation.group_by names the column {name!r}; the data have: "
                        + ", ".join(row.values)
                    )
            values = [row.values[name] for name in columns]
            if nested := next((value for value in values if isinstance(value, list | dict)), None):
                raise InputError(f"{row.where}: evaluation.group_by needs texts or numbers, got {shown(nested)}")
            groups.setdefault(tuple(values), []).append(row)
        return list(groups.values())


def load_rows(data: PromptData, split: str, columns: Sequence[str] = ()) -> Rows:
    """All rows of `train`, `validation` or `test`.

    Args:
        data: which files, and how their columns are read.
        split: the name of the split.
        columns: columns that are needed beside those that `data` names.

    Raises:
        InputError: missing or broken data, missing columns, rows without text.
    """
    return to_rows(read_split(data, split, columns), data)


def to_rows(table: Table, data: PromptData, *, complete: bool = True) -> Rows:
    """The rows of a table.

    Args:
        table: the table.
        data: how its columns are read.
        complete: whether the rows have completions; False: they are to be written, and are empty here.

    Raises:
        InputError: missing columns, rows without text, messages that are none.
    """
    read = _reader(data, complete)
    chat = isinstance(data, CausalData) and data.messages is not None
    rows = []
    for row, where in table.records():
        prompt, completion = read(row, where)
        rows.append(Row(where, prompt, completion, row, _read_variables(row, where) if chat else {}))
    return Rows(rows)


def _read_variables(row: Mapping[str, object], where: str) -> dict[str, Any]:
    """Read the columns `tools` and `chat_template_kwargs`, as TRL does."""
    tools, variables = (row.get(column) for column in TEMPLATE_COLUMNS)
    if isinstance(tools, str):
        tools = parse_json(tools, f"{where}: column 'tools'") if tools.strip() else None
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise InputError(f"{where}: column 'tools' holds {shown(tools)}, expected a list of objects, or its JSON")
    if variables is not None and not isinstance(variables, Mapping):
        raise InputError(f"{where}: column 'chat_template_kwargs' holds {shown(variables)}, expected an object")
    if reserved := sorted(_RESERVED_VARIABLES & (variables or {}).keys()):
        raise InputError(
            f"{where}: column 'chat_template_kwargs' sets {reserved[0]!r}, which is no variable of a chat template"
        )
    # An empty list is no tools: templates of Llama would announce them.
    return dict(variables or {}) | ({"tools": tools} if tools else {})


def _reader(data: PromptData, complete: bool) -> _Reader:
    """What turns the columns of a row into (prompt, completion)."""
    if data.prompt is not None and data.completion is not None:
        prompt, completion = Template.of(data.prompt, "data.prompt"), Template.of(data.completion, "data.completion")
        return lambda row, where: (prompt.fill(row, where), completion.fill(row, where) if complete else "")
    assert isinstance(data, CausalData)
    if data.text is not None:
        text = Template.of(data.text, "data.text")
        return lambda row, where: (None, text.fill(row, where))
    assert data.messages is not None
    read = _messages_reader(data.messages, complete)
    if complete:
        return lambda row, where: _conversation(read(row, where), where)
    return lambda row, where: (read(row, where), [{"role": "assistant", "content": ""}])


def _messages_reader(
    source: str | MessageColumn | list[MessageTemplate], complete: bool
) -> Callable[[Mapping[str, object], str], list[Message]]:
    """What reads the messages of a row; those that are to be answered, where the rows are not complete."""
    if isinstance(source, list):
        answered = not complete and source[-1].role == "assistant"
        templates = [
            (message.role, Template.of(message.content, f"data.messages[{number}].content"))
            for number, message in enumerate(source[:-1] if answered else source)
        ]
        return lambda row, where: [{"role": role, "content": text.fill(row, where)} for role, text in templates]
    column = MessageColumn(column=source) if isinstance(source, str) else source

    def read(row: Mapping[str, object], where: str) -> list[Message]:
        messages = _read_messages(row, column, where)
        return messages[:-1] if not complete and messages[-1]["role"] == "assistant" else messages

    return read


def _read_messages(row: Mapping[str, object], source: MessageColumn, where: str) -> list[Message]:
    if source.column not in row:
        raise InputError(f"{where}: data.messages names the column {source.column!r}; the data have: {', '.join(row)}")
    listed = row[source.column]
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        raise InputError(f"{where}: column {source.column!r} holds {shown(listed)}, expected a list of messages")
    return [_read_message(message, source, where) for message in listed]


def _read_message(message: object, source: MessageColumn, where: str) -> Message:
    """Read a message with all of its keys; those that hold null are not there, as in Parquet's rows."""
    wordless = isinstance(message, Mapping) and any(message.get(key) for key in _WORDLESS_KEYS)
    needed = {source.role} if wordless else {source.role, source.content}
    if not isinstance(message, Mapping) or not needed <= message.keys():
        keys = f"{source.role} and {source.content}"
        raise InputError(
            f"{where}: a message of {source.column!r} is {shown(message)}, expected an object with {keys}; "
            "other keys are named with data.messages: {column, role, content, names}"
        )
    role, content = message[source.role], message.get(source.content)
    if not isinstance(role, str) or not role.strip():
        raise InputError(f"{where}: a message of {source.column!r} has the role {shown(role)}, expected text")
    if not isinstance(content, str) and not (wordless and content is None):
        raise InputError(f"{where}: a message of {source.column!r} has the text {shown(content)}, expected text")
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls)):
        raise InputError(
            f"{where}: a message of {source.column!r} has the tool_calls {shown(calls)}, expected a list of objects"
        )
    others = {
        key: value
        for key, value in message.items()
        if value is not None and key not in (source.role, source.content, "role", "content")
    }
    return {"role": source.names.get(role, role), "content": content, **others}


def _conversation(messages: list[Message], where: str) -> tuple[list[Message], list[Message]]:
    """The messages before the last answer, and the whole up to it."""
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise InputError(
            f"{where}: no message is of the role assistant, the roles are {', '.join(dict.fromkeys(roles))}; "
            "name others with data.messages: {column: ..., names: {gpt: assistant}}"
        )
    last = len(roles) - roles[::-1].index("assistant")
    return messages[: last - 1], messages[:last]
