"""Configuration schemas of the recipes for language models."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from transformers import Seq2SeqTrainingArguments, TrainingArguments
from trl.trainer.sft_config import SFTConfig

from ailora.errors import InputError, unknown_name
from ailora.plan.task_type import TaskType
from ailora.recipes.config.sections import DataSource, RunConfig
from ailora.recipes.config.validation import Count, Section, Text, field
from ailora.recipes.data.templates import Template
from ailora.recipes.evaluation.text_metrics import TEXT_METRICS, validate_metric

#: Columns that TRL passes to the chat template along with the messages.
TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
#: Allowed values of a key with templates, for error messages.
_TEMPLATE_VALUES = "a template with column names in braces, such as '{question}', or a list of templates"


class MessageTemplate(Section, frozen=True):
    """Role of a message, and the template for its content."""

    role: Text = field("a role such as 'system', 'user' or 'assistant'")
    content: Text | list[Text] = field(_TEMPLATE_VALUES)


class MessageColumn(Section, frozen=True):
    """Column of conversations, and the keys in each message.

    Attributes:
        column: Name of the column.
        role, content: Keys for the role and the text of a message.
        names: Mapping from roles in the data to roles in the chat template.
    """

    column: Text = field("a column name")
    role: Text = field("the key of a message's role", "role")
    content: Text = field("the key of a message's text", "content")
    names: dict[str, str] = field("a mapping such as {human: user, gpt: assistant}", {})


class PromptData(DataSource, frozen=True):
    """Section `data:` with prompts and completions.

    Attributes:
        prompt, completion: Templates; see `ailora.recipes.data.templates.Template`.
    """

    prompt: Text | list[Text] | None = field(_TEMPLATE_VALUES, None)
    completion: Text | list[Text] | None = field(_TEMPLATE_VALUES, None)

    def check(self) -> None:
        """Validate the templates.

        Raises:
            InputError: A template is invalid or missing.
        """
        if (self.prompt is None) != (self.completion is None):
            given, missing = ("prompt", "completion") if self.completion is None else ("completion", "prompt")
            raise InputError(f"data.{given} requires data.{missing}, which is missing")
        for key in ("prompt", "completion"):
            if (template := getattr(self, key)) is not None:
                Template.parse(template, f"data.{key}")

    @property
    def named_columns(self) -> set[str]:
        # `Template.parse` needs a key only for its errors, and check() has already refused invalid templates.
        templates = [template for template in (self.prompt, self.completion) if template is not None]
        return {name for template in templates for name in Template.parse(template, "").names}


class CausalData(PromptData, frozen=True):
    """Section `data:` of the causal_lm recipe: prompts with completions, plain text, or conversations.

    Attributes:
        text: Template for plain text, whose tokens all count in the loss.
        messages: Column of conversations, or a template for each message.
        chat_template: Path of a Jinja file, or a template; None selects the tokenizer's chat template.
    """

    text: Text | list[Text] | None = field(_TEMPLATE_VALUES, None)
    messages: Text | MessageColumn | list[MessageTemplate] | None = field(
        "a column name, a mapping with column, role, content and names, or a list of mappings with role and content",
        None,
    )
    chat_template: Text | None = field("the path of a Jinja file, or a template", None)

    def check(self) -> None:
        super().check()
        given = [key for key in ("text", "prompt", "messages") if getattr(self, key) is not None]
        if len(given) != 1:
            keys = " and ".join(f"data.{key}" for key in given) or "none"
            raise InputError(f"expected data.text, data.prompt with data.completion, or data.messages; got {keys}")
        if self.chat_template is not None and self.messages is None:
            raise InputError("data.chat_template requires data.messages, which is missing")
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
        if isinstance(self.messages, str):
            names.add(self.messages)
        if isinstance(self.messages, MessageColumn):
            names.add(self.messages.column)
        return names


class Seq2SeqData(PromptData, frozen=True):
    """Section `data:` of the seq2seq recipe.

    Attributes:
        max_length: Maximum number of tokens per prompt; longer prompts are truncated; default: 512.
        max_completion_length: Maximum number of tokens per completion; longer completions are truncated; default: 128.
    """

    prompt: Text | list[Text] = field(_TEMPLATE_VALUES)
    completion: Text | list[Text] = field(_TEMPLATE_VALUES)
    max_length: Count = field("a whole number of at least 1", 512)
    max_completion_length: Count = field("a whole number of at least 1", 128)


class EvaluationConfig(Section, frozen=True):
    """Section `evaluation:`: generation and scoring of texts after training.

    Attributes:
        generate: Fields of `transformers.GenerationConfig`; None disables generation.
        metrics: Names of metrics that compare generated texts with references.
        group_by: Columns that identify an input. Rows with equal values in all these columns are references for the
            same input.
        max_samples: Number of inputs for generation, sampled with a fixed seed; None for all inputs.
        general_text: Files of general text. Forgetting is the increase of the loss on this text caused by training.
        general_template: Template for the rows of `general_text`; default: `{text}`.
        max_general_samples: Number of rows to use from `general_text`; default: 256.
    """

    generate: dict[str, Any] | None = field("fields of transformers.GenerationConfig such as max_new_tokens", None)
    metrics: list[str] = field("a list of metric names", [])
    group_by: Text | list[Text] | None = field("a column name or a list of column names", None)
    max_samples: Count | None = field("a whole number of at least 1", None)
    general_text: Text | list[Text] | None = field("a file or a list of files", None)
    general_template: Text | list[Text] = field(_TEMPLATE_VALUES, "{text}")
    max_general_samples: Count = field("a whole number of at least 1", 256)

    @property
    def group_columns(self) -> tuple[str, ...]:
        """Names of the columns in `group_by`."""
        return (self.group_by,) if isinstance(self.group_by, str) else tuple(self.group_by or ())

    def check(self) -> None:
        """Validate metrics and templates.

        Raises:
            InputError: A metric is unknown, its data are not installed, `generate` is missing, or `general_template` is
                invalid.
        """
        for name in self.metrics:
            if name not in TEXT_METRICS:
                raise unknown_name("evaluation.metrics", name, TEXT_METRICS)
            validate_metric(name)
        if self.metrics and self.generate is None:
            raise InputError("evaluation.metrics requires evaluation.generate, which is missing")
        Template.parse(self.general_template, "evaluation.general_template")


class LanguageConfig(RunConfig, frozen=True):
    """Configuration of a recipe for language models.

    Attributes:
        evaluation: Generation and scoring after training.
    """

    #: Small evaluation batches, because the logits (rows, tokens, vocabulary) of a batch must fit in memory.
    training_defaults: ClassVar[dict[str, Any]] = {"per_device_eval_batch_size": 8}

    data: PromptData
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def scores(self) -> dict[str, bool]:
        larger_is_better = {name: TEXT_METRICS[name].larger_is_better for name in self.evaluation.metrics}
        return {"loss": False, "perplexity": False, **larger_is_better}

    def check(self) -> None:
        self.data.check()
        self.evaluation.check()
        if self.training.get("assistant_only_loss") and getattr(self.data, "messages", None) is None:
            raise InputError("training.assistant_only_loss requires data.messages, which is missing")
        if self.evaluation.generate is not None and getattr(self.data, "text", None) is not None:
            raise InputError(
                "evaluation.generate requires prompts, but data.text has none; use data.prompt or data.messages"
            )

    def check_training(self) -> None:
        if self.training.get("completion_only_loss") and self.data.completion is None:
            raise InputError(
                "training.completion_only_loss requires data.prompt with data.completion, which are missing; for "
                "data.messages, set training.assistant_only_loss"
            )


class CausalLMConfig(LanguageConfig, frozen=True):
    """Configuration of the causal_lm recipe; `training` holds fields of `trl.SFTConfig`."""

    task_type: ClassVar[TaskType] = TaskType.CAUSAL_LM
    arguments: ClassVar[type[TrainingArguments]] = SFTConfig

    recipe: Literal["causal_lm"] = field("causal_lm")
    data: CausalData

    @property
    def derived_training(self) -> dict[str, Any]:
        """Mixed precision on GPUs that support bfloat16, and activation checkpointing on accelerators."""
        # TRL enables both on all devices, but on a CPU they only slow training down.
        # Without `including_emulation=False`, torch also accepts GPUs that only emulate bfloat16.
        bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        return {"bf16": bf16, "activation_checkpointing": torch.accelerator.is_available()}


class Seq2SeqConfig(LanguageConfig, frozen=True):
    """Configuration of the seq2seq recipe; `training` holds fields of `transformers.Seq2SeqTrainingArguments`."""

    task_type: ClassVar[TaskType] = TaskType.SEQ_2_SEQ_LM
    arguments: ClassVar[type[TrainingArguments]] = Seq2SeqTrainingArguments

    recipe: Literal["seq2seq"] = field("seq2seq")
    data: Seq2SeqData
