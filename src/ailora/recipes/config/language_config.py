"""The configurations of the recipes that train language models."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from transformers import Seq2SeqTrainingArguments, TrainingArguments
from trl.trainer.sft_config import SFTConfig

from ailora.errors import InputError, unknown_name
from ailora.plan.task_type import TaskType
from ailora.recipes.config.sections import Count, DataSource, RunConfig, Section, Text, field
from ailora.recipes.data.templates import Template
from ailora.recipes.evaluation.text_metrics import TEXT_METRICS, validate_metric

#: Columns beside the messages that TRL gives to the chat template.
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
_TEMPLATE = "a template over columns such as '{question}', or a list of them"


class MessageTemplate(Section, frozen=True):
    """One message of a conversation that is made from columns."""

    role: Text = field("system, user or assistant")
    content: Text | list[Text] = field(_TEMPLATE)


class MessageColumn(Section, frozen=True):
    """A column that holds conversations, and how their messages are written there.

    Attributes:
        column: the column's name.
        role, content: the keys of a message.
        names: what is written there for a role -> the role that the chat template knows.
    """

    column: Text = field("a column name")
    role: Text = field("the key of a message's role", "role")
    content: Text = field("the key of a message's text", "content")
    names: dict[str, str] = field("a mapping such as {human: user, gpt: assistant}", {})


class PromptData(DataSource, frozen=True):
    """`data:` of a model that writes a completion to a prompt.

    A template names columns in braces; of a list, the first whose columns all hold text is used.

    Attributes:
        prompt, completion: templates over columns.
    """

    prompt: Text | list[Text] | None = field(_TEMPLATE, None)
    completion: Text | list[Text] | None = field(_TEMPLATE, None)

    def check(self) -> None:
        """Refuse templates that are broken, or missing.

        Raises:
            InputError: which.
        """
        if (self.prompt is None) != (self.completion is None):
            given, missing = ("prompt", "completion") if self.completion is None else ("completion", "prompt")
            raise InputError(f"data.{given} goes with data.{missing}, which is missing")
        for key in ("prompt", "completion"):
            if (template := getattr(self, key)) is not None:
                Template.parse(template, f"data.{key}")

    @property
    def named_columns(self) -> set[str]:
        templates = [template for template in (self.prompt, self.completion) if template is not None]
        return {name for template in templates for name in Template.parse(template, "").names}


class CausalData(PromptData, frozen=True):
    """`data:` of the causal_lm recipe: prompts with completions, or plain text, or conversations.

    Attributes:
        text: a template; the loss is on all of it.
        messages: a column of conversations, or messages made from columns.
        chat_template: a Jinja file, or the template itself; None: the tokenizer's.
    """

    text: Text | list[Text] | None = field(_TEMPLATE, None)
    messages: Text | MessageColumn | list[MessageTemplate] | None = field(
        "a column name, a mapping with column, role, content and names, or a list of role and content templates", None
    )
    chat_template: Text | None = field("a Jinja file, or the template itself", None)

    def check(self) -> None:
        super().check()
        given = [key for key in ("text", "prompt", "messages") if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(f"data.{key}" for key in given) or "none of them"
            raise InputError(f"data takes one of text, prompt with completion, or messages; got {found}")
        if self.chat_template is not None and self.messages is None:
            raise InputError("data.chat_template goes with data.messages, which is missing")
        if self.text is not None:
            Template.parse(self.text, "data.text")
        if isinstance(self.messages, list):
            if not self.messages:
                raise InputError("data.messages is empty")
            for number, message in enumerate(self.messages):
                Template.parse(message.content, f"data.messages[{number}].content")

    @property
    def named_columns(self) -> set[str]:
        contents = [message.content for message in self.messages] if isinstance(self.messages, list) else []
        templates = [*contents, *([] if self.text is None else [self.text])]
        names = {name for template in templates for name in Template.parse(template, "").names} | super().named_columns
        if self.messages is not None:
            names |= {*TEMPLATE_COLUMNS}
        if isinstance(self.messages, str | MessageColumn):
            names |= {self.messages if isinstance(self.messages, str) else self.messages.column}
        return names


class Seq2SeqData(PromptData, frozen=True):
    """`data:` of the seq2seq recipe.

    Attributes:
        max_length: tokens after which a prompt is cut.
        max_completion_length: tokens after which a completion is cut.
    """

    prompt: Text | list[Text] = field(_TEMPLATE)
    completion: Text | list[Text] = field(_TEMPLATE)
    max_length: Count = field("a whole number from 1", 512)
    max_completion_length: Count = field("a whole number from 1", 128)


class EvaluationConfig(Section, frozen=True):
    """`evaluation:`. What is measured when training has ended.

    Attributes:
        generate: fields of `transformers.GenerationConfig`; None: nothing is generated.
        metrics: scores of generated texts against the references.
        group_by: columns; rows that agree in them are one input with several references.
        max_samples: generate for so many inputs, chosen with a fixed seed, in their order.
        general_text: a file of general text; the rise of the loss on it over the base model's is *forgetting*.
        general_template: the text of its rows.
        max_general_samples: use so many of its rows.
    """

    generate: dict[str, Any] | None = field("fields of transformers.GenerationConfig such as max_new_tokens", None)
    metrics: list[str] = field("a list of names of metrics", [])
    group_by: Text | list[Text] | None = field("a column name or a list of them", None)
    max_samples: Count | None = field("a whole number from 1", None)
    general_text: Text | list[Text] | None = field("a file or a list of files", None)
    general_template: Text | list[Text] = field(_TEMPLATE, "{text}")
    max_general_samples: Count = field("a whole number from 1", 256)

    @property
    def groups(self) -> tuple[str, ...]:
        """The columns of `group_by`."""
        return (self.group_by,) if isinstance(self.group_by, str) else tuple(self.group_by or ())

    def check(self) -> None:
        """Refuse metrics that do not exist or have nothing to score.

        Raises:
            InputError: which.
        """
        for name in self.metrics:
            if name not in TEXT_METRICS:
                raise unknown_name("evaluation.metrics", name, TEXT_METRICS)
            validate_metric(name)
        if self.metrics and self.generate is None:
            raise InputError("evaluation.metrics scores generated texts: give evaluation.generate as well")
        Template.parse(self.general_template, "evaluation.general_template")


class LanguageConfig(RunConfig, frozen=True):
    """A run that trains a language model.

    Attributes:
        evaluation: what is measured at the end.
    """

    #: The logits of a batch are as large as the vocabulary.
    training_defaults: ClassVar[dict[str, Any]] = {"per_device_eval_batch_size": 8}

    data: PromptData
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def scores(self) -> dict[str, bool]:
        texts = {name: TEXT_METRICS[name].larger_is_better for name in self.evaluation.metrics}
        return {"loss": False, "perplexity": False, **texts}

    def check(self) -> None:
        self.data.check()
        self.evaluation.check()
        if self.training.get("assistant_only_loss") and getattr(self.data, "messages", None) is None:
            raise InputError("training.assistant_only_loss goes with data.messages, which is missing")
        if self.evaluation.generate is not None and getattr(self.data, "text", None) is not None:
            raise InputError(
                "evaluation.generate needs a prompt: data.text has none; give data.prompt or data.messages"
            )


class CausalLMConfig(LanguageConfig, frozen=True):
    """A run of the causal_lm recipe; `training` holds fields of `trl.SFTConfig`."""

    task_type: ClassVar[TaskType] = TaskType.CAUSAL_LM
    arguments: ClassVar[type[TrainingArguments]] = SFTConfig

    recipe: Literal["causal_lm"] = field("causal_lm")
    data: CausalData

    @property
    def derived_training(self) -> dict[str, Any]:
        """Mixed precision and activation checkpointing are for accelerators, as TRL means them."""
        bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return {"bf16": bf16, "activation_checkpointing": torch.accelerator.is_available()}


class Seq2SeqConfig(LanguageConfig, frozen=True):
    """A run of the seq2seq recipe; `training` holds fields of `transformers.Seq2SeqTrainingArguments`."""

    task_type: ClassVar[TaskType] = TaskType.SEQ_2_SEQ_LM
    arguments: ClassVar[type[TrainingArguments]] = Seq2SeqTrainingArguments

    recipe: Literal["seq2seq"] = field("seq2seq")
    data: Seq2SeqData
