"""Templates, rows and their tokens: what a language model is given to read, and what it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

import ailora
from ailora.recipes.config.language_config import CausalData
from ailora.recipes.data.language_rows import Rows, to_rows
from ailora.recipes.data.readers import Table, read_tables
from ailora.recipes.data.templates import Template
from ailora.recipes.data.tokenize_language import IGNORE_INDEX, Tokenization, prepare_tokenizer
from tests.recipes.language import CHAT_TEMPLATE, tokenizer

ALPACA = ["Do: {instruction}\nWith: {input}\n", "Do: {instruction}\n"]


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    made = tokenizer()
    made.chat_template = CHAT_TEMPLATE
    return made


def data(**keys: Any) -> CausalData:
    made = CausalData.model_validate({"train": "t.csv", "validation": "v.csv", **keys})
    made.check()
    return made


def select_rows(columns: dict[str, list[Any]], source: CausalData) -> Rows:
    count = len(next(iter(columns.values())))
    table = list(zip(*columns.values(), strict=True))
    return to_rows(Table(tuple(columns), table, [f"rows.csv:{i + 2}" for i in range(count)]), source)


# --- templates -----------------------------------------------------------------------------------------------------


def test_a_template_takes_the_first_alternative_whose_columns_hold_text() -> None:
    template = Template.parse(ALPACA, "data.prompt")
    assert template.fill({"instruction": "add", "input": "1, 2"}, "") == "Do: add\nWith: 1, 2\n"
    for empty in ("", "  ", None, float("nan")):
        assert template.fill({"instruction": "add", "input": empty}, "") == "Do: add\n"
    assert template.names == ("instruction", "input")
    assert Template.parse("{{{a}}}", "k").fill({"a": 3}, "") == "{3}"


@given(st.text(alphabet=st.characters(exclude_characters="{}", exclude_categories=["Cs"])), st.text(min_size=1))
def test_what_is_filled_in_stands_as_it_is(around: str, value: str) -> None:
    """Braces and names inside a value are text."""
    template = Template.parse(around + "{a}" + around, "data.text")
    if value.strip():
        assert template.fill({"a": value}, "") == around + value + around


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "write {{ and }} for literal braces"),
        ("{}", "expected a column name in braces"),
        ("{a!r}", "expected a column name in braces"),
        ("{a.__class__}", "expected a column name in braces"),
        ("{a[0]}", "expected a column name in braces"),
        ("{a:>10}", "expected a column name in braces"),
        ("mr =>", "names no column"),
        ([], "is empty"),
    ],
)
def test_broken_templates_are_refused(text: Any, message: str) -> None:
    with pytest.raises(ailora.InputError, match=message):
        Template.parse(text, "data.prompt")


def test_a_row_without_the_column_or_text_is_named() -> None:
    with pytest.raises(
        ailora.InputError, match=r"rows\.csv:2: data\.prompt names the column 'question'.* the columns are mr, ref"
    ):
        select_rows({"mr": ["a"], "ref": ["b"]}, data(prompt="{question}", completion="{ref}"))
    with pytest.raises(
        ailora.InputError,
        match=r"rows\.csv:3: data\.completion cannot be filled in; columns without text or a number: ref",
    ):
        select_rows({"mr": ["a", "b"], "ref": ["b", ""]}, data(prompt="{mr}", completion="{ref}"))


# --- conversations -------------------------------------------------------------------------------------------------

SHAREGPT = {
    "column": "conversations",
    "role": "from",
    "content": "value",
    "names": {"human": "user", "gpt": "assistant"},
}
TALK = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}, {"from": "human", "value": "thanks"}]


def test_sharegpt_conversations_end_with_the_last_answer() -> None:
    (row,) = select_rows({"conversations": [TALK]}, data(messages=SHAREGPT)).rows
    assert row.prompt == [{"role": "user", "content": "hi"}]
    assert row.completion == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def test_conversations_that_wait_for_an_answer() -> None:
    """What `ailora predict` is given: the last answer is not there, or does not count."""
    messages = [{"role": "user", "content": "{question}"}, {"role": "assistant", "content": "{answer}"}]
    asked = [{"role": "user", "content": "where?"}]
    table = Table(("question",), [("where?",)], ["rows.csv:2"])
    (row,) = to_rows(table, data(messages=messages), complete=False).rows
    assert (row.prompt, row.completion) == (asked, [{"role": "assistant", "content": ""}])
    for talk in (asked, [*asked, {"role": "assistant", "content": "here"}]):
        table = Table(("m",), [(talk,)], ["rows.jsonl:1"])
        (row,) = to_rows(table, data(messages="m"), complete=False).rows
        assert row.prompt == asked


def test_messages_are_made_from_columns() -> None:
    messages = [{"role": "user", "content": ALPACA}, {"role": "assistant", "content": "{output}"}]
    columns = {"instruction": ["add"], "input": [""], "output": ["3"]}
    (row,) = select_rows(columns, data(messages=messages)).rows
    assert row.prompt == [{"role": "user", "content": "Do: add\n"}]
    assert row.completion[-1] == {"role": "assistant", "content": "3"}


@pytest.mark.parametrize(
    ("talk", "source", "message"),
    [
        (TALK, "conversations", "expected an object with role and content"),
        (TALK, {**SHAREGPT, "names": {}}, r"expected a message with the role assistant, got the roles human, gpt"),
        ([], SHAREGPT, "expected a list of messages"),
        ("hi", SHAREGPT, "expected a list of messages"),
        ([{"from": "gpt", "value": 3}], SHAREGPT, "has the content 3, expected text"),
        (TALK, {"column": "chat"}, "names the column 'chat', which is missing; the columns are conversations"),
    ],
)
def test_conversations_of_another_kind_are_refused(talk: Any, source: Any, message: str) -> None:
    with pytest.raises(ailora.InputError, match=message):
        select_rows({"conversations": [talk]}, data(messages=source))


def test_alpacas_file_is_one_list_of_objects(tmp_path: Path) -> None:
    file = tmp_path / "alpaca.json"
    file.write_text(json.dumps([{"instruction": "add", "input": "", "output": "3"}], indent=2))
    table = read_tables(str(file))
    assert table.columns == ("instruction", "input", "output")
    assert table.origins == [f"{file}: record 0"]
    file.write_text('[{"a": 1}, 3]')
    with pytest.raises(ailora.InputError, match="record 1: expected an object, got int"):
        read_tables(str(file))
    file.write_text('[{"a": 1},\n')
    with pytest.raises(ailora.InputError, match="not JSON"):
        read_tables(str(file))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "expected data.text, data.prompt with data.completion, or data.messages; got none"),
        ({"text": "{a}", "messages": "m"}, "got data.text and data.messages"),
        ({"prompt": "{a}"}, r"data\.prompt requires data\.completion, which is missing"),
        ({"text": "{a}", "chat_template": "{{ x }}"}, r"data\.chat_template requires data\.messages"),
        ({"messages": []}, r"data\.messages is empty"),
    ],
)
def test_data_is_of_one_kind(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ailora.InputError, match=message):
        data(**keys)


def test_rows_are_grouped_by_texts_and_numbers_only() -> None:
    rows = select_rows({"a": ["x", "y"], "b": [1, [2]]}, data(text="{a}"))
    assert [len(group) for group in rows.group_by(["a"])] == [1, 1]
    with pytest.raises(
        ailora.InputError, match=r"rows\.csv:3: evaluation\.group_by requires columns of text or numbers, got \[2\]"
    ):
        rows.group_by(["b"])
    with pytest.raises(ailora.InputError, match=r"rows\.csv:2: evaluation\.group_by requires .*, got \[\]"):
        select_rows({"a": ["x"], "b": [[]]}, data(text="{a}")).group_by(["b"])


# --- tokens --------------------------------------------------------------------------------------------------------

MESSAGES = [
    {"role": "user", "content": "where is the car?"},
    {"role": "assistant", "content": "in the garden"},
    {"role": "user", "content": "and the cup?"},
    {"role": "assistant", "content": "in the kitchen"},
]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("columns", "source", "stock", "options"),
    [
        ({"a": ["red car", "blue cup"]}, {"text": "The {a}."}, {"text": ["The red car.", "The blue cup."]}, {}),
        (
            {"a": ["thing[car]", "thing[cup]"], "b": ["The car.", "The cup in the garden."]},
            {"prompt": "{a} =>", "completion": " {b}"},
            {"prompt": ["thing[car] =>", "thing[cup] =>"], "completion": [" The car.", " The cup in the garden."]},
            {},
        ),
        (
            {"a": ["thing[car]"], "b": ["The car."]},
            {"prompt": "{a} =>", "completion": " {b}"},
            {"prompt": ["thing[car] =>"], "completion": [" The car."]},
            {"completion_only_loss": False},
        ),
        ({"m": [MESSAGES]}, {"messages": "m"}, {"messages": [MESSAGES]}, {}),
        ({"m": [MESSAGES]}, {"messages": "m"}, {"messages": [MESSAGES]}, {"assistant_only_loss": True}),
        # Tokens merge across the end of this prompt.
        (
            {"a": ["The ca"], "b": ["r."]},
            {"prompt": "{a}", "completion": "{b}"},
            {"prompt": ["The ca"], "completion": ["r."]},
            {},
        ),
    ],
    ids=["text", "prompt", "whole loss", "messages", "assistant loss", "merged"],
)
def test_tokens_are_those_of_trl(
    words: PreTrainedTokenizerFast,
    tiny_llama: str,
    tmp_path: Path,
    columns: dict[str, Any],
    source: dict[str, Any],
    stock: dict[str, Any],
    options: dict[str, Any],
) -> None:
    ours = Tokenization(
        words,
        max_length=40,
        train_on_prompt=options.get("completion_only_loss") is False,
        assistant_only_loss=options.get("assistant_only_loss", False),
    ).tokenize(select_rows(columns, data(**source)))
    theirs = prepare_with_trl(Dataset.from_dict(stock), words, tiny_llama, tmp_path, max_length=40, **options)
    assert list(ours["input_ids"]) == list(theirs["input_ids"])
    assert list(ours["labels"]) == list(theirs["labels"])


def prepare_with_trl(
    stock: Dataset, words: PreTrainedTokenizerFast, model: str, folder: Path, **options: Any
) -> Dataset:
    arguments = SFTConfig(str(folder), report_to="none", bf16=False, dataloader_pin_memory=False, **options)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=arguments,
        train_dataset=stock,
        processing_class=words,
    )
    assert isinstance(trainer.train_dataset, Dataset)
    return trainer.train_dataset


#: Writes whatever a message says beside its text, as templates of models that call tools do.
TOOL_TEMPLATE = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</s>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{% if m.name %}[{{ m.name }}]{% endif %}"
    "{% if m.tool_call_id %}({{ m.tool_call_id }}){% endif %}"
    "{% if m.role == 'assistant' %}{% generation %}"
    "{% if m.reasoning_content and not quiet %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}{% endfor %}</s>{% endgeneration %}"
    "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CALL = {"id": "c1", "type": "function", "function": {"name": "where", "arguments": {"thing": "car"}}}
TOOL_TALK = [
    {"role": "user", "content": "where is the car?"},
    {"role": "assistant", "content": "", "reasoning_content": "look it up", "tool_calls": [CALL]},
    {"role": "tool", "content": "garden", "tool_call_id": "c1", "name": "where"},
    {"role": "assistant", "content": "in the garden"},
]
TOOLS = [{"type": "function", "function": {"name": "where", "parameters": {"type": "object"}}}]


@pytest.fixture
def tool_words() -> PreTrainedTokenizerFast:
    made = tokenizer()
    made.chat_template = TOOL_TEMPLATE
    return made


def jsonl_rows(folder: Path, *records: dict[str, Any]) -> Rows:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return to_rows(read_tables(str(file)), data(messages="messages"))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("assistant_only_loss", [False, True])
def test_tokens_of_tool_calls_are_those_of_trl(
    tool_words: PreTrainedTokenizerFast, tiny_llama: str, tmp_path: Path, assistant_only_loss: bool
) -> None:
    """Rows have different keys, as data sets of tools do: tools as a list or as its JSON, or none."""
    silent = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    rows = [
        {"messages": TOOL_TALK, "tools": json.dumps(TOOLS)},
        {"messages": [TOOL_TALK[0], silent], "chat_template_kwargs": {"quiet": False}},
        {"messages": TOOL_TALK, "tools": json.dumps(TOOLS), "chat_template_kwargs": {"quiet": True}},
    ]
    stock = Dataset.from_list([{"chat_template_kwargs": {}, **row} for row in rows])
    options = {"assistant_only_loss": assistant_only_loss, "max_length": 400}
    theirs = prepare_with_trl(stock, tool_words, tiny_llama, tmp_path, **options)
    ours = Tokenization(tool_words, **options).tokenize(jsonl_rows(tmp_path, *rows))
    assert list(ours["input_ids"]) == list(theirs["input_ids"])
    assert list(ours["labels"]) == list(theirs["labels"])
    listed = jsonl_rows(tmp_path, {**rows[0], "tools": TOOLS}).rows[0]
    assert Tokenization(tool_words).encode(listed)[0] == list(theirs["input_ids"][0])


def test_the_reference_of_a_tool_call_is_what_the_template_writes(
    tool_words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    called, answered = jsonl_rows(tmp_path, {"messages": TOOL_TALK[:2], "tools": TOOLS}, {"messages": TOOL_TALK}).rows
    tokens = Tokenization(tool_words)
    assert tokens.reference_text(called) == (
        '<think>look it up</think><call>{"name": "where", "arguments": {"thing": "car"}}'
    )
    assert tokens.reference_text(answered) == "in the garden"
    assert str(tool_words.decode(tokens.encode_prompt(called))).startswith("<tools>{")


def test_messages_of_parquet_have_no_keys_that_hold_nothing() -> None:
    """Arrow fills every key of any message into all of them."""
    talk = [{"role": "user", "content": "a", "tool_calls": None}, {"role": "assistant", "content": "b", "name": "x"}]
    (row,) = select_rows({"m": [talk]}, data(messages="m")).rows
    assert row.completion == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "name": "x"}]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"messages": TOOL_TALK},
            "template ignores 'reasoning_content'; set a data.chat_template that uses 'reasoning_content'",
        ),
        (
            {"messages": [MESSAGES[0], {"role": "assistant", "tool_calls": [CALL]}]},
            "the chat template ignores 'tool_calls'",
        ),
        ({"messages": MESSAGES, "tools": TOOLS}, "the chat template ignores 'tools'"),
        ({"messages": MESSAGES, "chat_template_kwargs": {"quiet": True}}, "the chat template ignores 'quiet'"),
        (
            {"messages": MESSAGES, "chat_template_kwargs": {"tokenize": False}},
            "sets 'tokenize', which is not a variable",
        ),
        ({"messages": MESSAGES, "chat_template_kwargs": 3}, "'chat_template_kwargs' holds 3, expected an object"),
        ({"messages": MESSAGES, "tools": "where"}, "column 'tools': not JSON"),
        (
            {"messages": MESSAGES, "tools": {"a": 1}},
            "'tools' holds .*expected a list of objects, or such a list as JSON",
        ),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "weight": 0}]}, "has weight 0, but the loss includes"),
        ({"messages": [{**MESSAGES[0], "train": False}, MESSAGES[1]]}, "has train False, but the loss includes"),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "weight": 0.5}]}, "has weight 0.5"),
        ({"messages": [{"role": ["user"], "content": "a"}, MESSAGES[1]]}, r"has the role \['user'\], expected text"),
        ({"messages": [{"role": None, "content": "a"}, MESSAGES[1]]}, "has the role None, expected text"),
        ({"messages": [MESSAGES[0], {"role": "assistant", "content": None}]}, "has the content None, expected text"),
        ({"messages": [MESSAGES[0], {**MESSAGES[1], "tool_calls": "x"}]}, "has the tool_calls 'x', expected a list"),
    ],
)
def test_keys_that_would_be_ignored_are_refused_by_file_and_line(
    words: PreTrainedTokenizerFast, tmp_path: Path, record: dict[str, Any], message: str
) -> None:
    with pytest.raises(ailora.InputError, match=rf"rows\.jsonl:2: .*{message}"):
        Tokenization(words).tokenize(jsonl_rows(tmp_path, {"messages": MESSAGES}, record))


def test_weights_that_say_what_the_run_does_are_accepted(words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    talk = [{**MESSAGES[0], "weight": 0}, {**MESSAGES[1], "weight": 1, "train": True}]
    row = {"messages": talk}
    assert len(Tokenization(words, assistant_only_loss=True).tokenize(jsonl_rows(tmp_path, row))) == 1
    with pytest.raises(ailora.InputError, match=r"rows\.jsonl:1: .*change training\.assistant_only_loss"):
        Tokenization(words).tokenize(jsonl_rows(tmp_path, row))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 1 / 0 }}", r"^rows\.csv:2: the chat template fails .*ZeroDivisionError"),
        ("{{ messages[0].content + none }}", r"^rows\.csv:2: .*TypeError"),
        ("{{ nowhere.a.b }}", r"^rows\.csv:2: .*UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", r"^rows\.csv:2: .*SecurityError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", r"^rows\.csv:2: .*RecursionError"),
        ("a\n{% for %}", r"^the chat template has a syntax error in line 2: "),
        ("{{ a | nofilter }}", r"^the chat template has a syntax error in line 1: No filter named"),
    ],
)
def test_a_template_that_fails_names_the_row_and_a_broken_one_does_not(template: str, message: str) -> None:
    made = tokenizer()
    made.chat_template = template
    (row,) = select_rows({"m": [MESSAGES]}, data(messages="m")).rows
    with pytest.raises(ailora.InputError, match=message):
        Tokenization(made).encode(row)


def test_rows_of_which_nothing_is_left_are_named(words: PreTrainedTokenizerFast) -> None:
    rows = select_rows(
        {"a": ["car", "the " * 40, "cup", "the " * 50], "b": ["x"] * 4}, data(prompt="{a} =>", completion=" {b}")
    )
    with pytest.raises(ailora.InputError, match=r"rows\.csv:3, rows\.csv:5: truncation to 16 tokens removes the"):
        Tokenization(words, max_length=16).tokenize(rows)


def test_rows_without_a_token_in_the_loss_are_not_blamed_on_truncation(words: PreTrainedTokenizerFast) -> None:
    rows = select_rows({"a": ["car", "</s>"]}, data(text="{a}"))
    with pytest.raises(ailora.InputError, match=r"^rows\.csv:3: the loss would include no token"):
        Tokenization(words, max_length=16).tokenize(rows)


def test_a_prompt_ends_where_its_completion_begins(words: PreTrainedTokenizerFast) -> None:
    (row,) = select_rows({"m": [MESSAGES]}, data(messages="m")).rows
    tokens = Tokenization(words, assistant_only_loss=True)
    ids, labels = tokens.encode(row)
    prompt = tokens.encode_prompt(row)
    assert ids[: len(prompt)] == prompt
    assert words.decode(ids[len(prompt) :]) == "in the kitchen</s>"
    assert words.decode([label for label in labels if label != IGNORE_INDEX]) == "in the garden</s>in the kitchen</s>"


def test_a_tokenizer_without_what_training_needs_is_refused(tmp_path: Path) -> None:
    made = tokenizer()
    with pytest.raises(ailora.InputError, match=r"has no chat template, but data\.messages requires"):
        prepare_tokenizer(made, name="m", chat_template=None, chat=True)
    with pytest.raises(ailora.InputError, match=r"no such file: nowhere\.jinja"):
        prepare_tokenizer(made, name="m", chat_template="nowhere.jinja", chat=True)
    (tmp_path / "chat.jinja").write_text(CHAT_TEMPLATE)
    prepare_tokenizer(made, name="m", chat_template=str(tmp_path / "chat.jinja"), chat=True)
    assert made.chat_template == CHAT_TEMPLATE
    # A file is read whatever its suffix, and its path never becomes the template.
    (tmp_path / "chat").write_text("{{ messages }}")
    prepare_tokenizer(made, name="m", chat_template=str(tmp_path / "chat"), chat=True)
    assert made.chat_template == "{{ messages }}"
    with pytest.raises(ailora.InputError, match=r"no such file: chats/llama\.html"):
        prepare_tokenizer(made, name="m", chat_template="chats/llama.html", chat=True)
    made.pad_token = None
    with pytest.raises(ailora.InputError, match="has no padding token; set pad_token in its tokenizer_config"):
        prepare_tokenizer(made, name="m", chat_template=None, chat=False)
    made.eos_token = None
    with pytest.raises(ailora.InputError, match="has no end-of-text token"):
        prepare_tokenizer(made, name="m", chat_template=None, chat=False)


def test_a_conversation_that_the_template_refuses_is_an_input_error() -> None:
    made = tokenizer()
    made.chat_template = "{{ raise_exception('roles must alternate') }}"
    (row,) = select_rows({"m": [MESSAGES]}, data(messages="m")).rows
    with pytest.raises(ailora.InputError, match=r"the chat template fails .* roles must alternate"):
        Tokenization(made).encode(row)
