"""Task types of PEFT, each with the class and the heads of its models in transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from torch import nn

from ailora.errors import parse_choice


class TaskType(StrEnum):
    """Task types of PEFT.

    PEFT's own enum is not used, because importing PEFT takes seconds and plans need nothing else from PEFT.
    """

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


@dataclass(frozen=True)
class Task:
    """Model class and heads of a task type.

    Attributes:
        title: Human-readable name of the task.
        auto_class: Name of the auto class of transformers that loads models for the task.
        recipe: Name of the recipe for the task, or None.
        class_suffixes: Endings of the names of model classes for the task.
        peft_heads: Names of heads that PEFT trains in full by default.
        other_heads: Names of new heads that PEFT keeps frozen by default, as in BART and T5.
    """

    title: str
    auto_class: str
    recipe: str | None = None
    class_suffixes: tuple[str, ...] = ()
    peft_heads: tuple[str, ...] = ()
    other_heads: tuple[str, ...] = ()

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the modules added by the task to a pretrained model."""
        return (*self.peft_heads, *self.other_heads)

    @property
    def predicts_classes(self) -> bool:
        """Whether the head's last weight has a row for each class."""
        # PEFT has the head `classifier` only for the two classification tasks.
        return "classifier" in self.peft_heads


#: Task type -> task. The members of `TaskType` are strings, so strings from files can be used as keys.
TASKS: Mapping[str, Task] = {
    TaskType.SEQ_CLS: Task(
        "sequence classification",
        "AutoModelForSequenceClassification",
        "classification",
        ("ForSequenceClassification",),
        peft_heads=("classifier", "score"),
        other_heads=("classification_head",),
    ),
    TaskType.SEQ_2_SEQ_LM: Task(
        "sequence-to-sequence generation", "AutoModelForSeq2SeqLM", "seq2seq", ("ForConditionalGeneration",)
    ),
    TaskType.CAUSAL_LM: Task("text generation", "AutoModelForCausalLM", "causal_lm", ("ForCausalLM", "LMHeadModel")),
    TaskType.TOKEN_CLS: Task(
        "token classification",
        "AutoModelForTokenClassification",
        class_suffixes=("ForTokenClassification",),
        peft_heads=("classifier", "score"),
        other_heads=("classification_head",),
    ),
    TaskType.QUESTION_ANS: Task(
        "question answering",
        "AutoModelForQuestionAnswering",
        class_suffixes=("ForQuestionAnswering",),
        peft_heads=("qa_outputs",),
    ),
    TaskType.FEATURE_EXTRACTION: Task("feature extraction", "AutoModel"),
}


def get_task(task_type: str | None) -> Task:
    """Return the task of a task type: feature extraction for None and for task types added by later PEFT versions."""
    return TASKS.get(task_type or "", TASKS[TaskType.FEATURE_EXTRACTION])


def infer_task_type(model: nn.Module) -> TaskType | None:
    """Infer the task type from a model's class.

    Without a task type, PEFT would keep the new head of a classification model frozen. Models of images or audio get no
    task type, because PEFT's model classes pass `input_ids` by name.

    Returns:
        Task type. None if PEFT has no task type for the class.
    """
    if getattr(model, "main_input_name", None) != "input_ids":
        return None
    name = type(model).__name__
    # Multimodal decoders have the same suffix as encoder-decoder models such as T5.
    if name.endswith("ForConditionalGeneration") and not getattr(model.config, "is_encoder_decoder", False):
        return None
    return next((TaskType(key) for key, task in TASKS.items() if name.endswith(task.class_suffixes)), None)


def find_frozen_heads(model: nn.Module, task_type: str | None) -> tuple[str, ...]:
    """Return the names of a model's new heads that PEFT would keep frozen by default."""
    heads = get_task(task_type).other_heads
    return tuple(name for name, _ in model.named_children() if name in heads)


def read_labels(model_config: object, task_type: str | None) -> tuple[str, ...] | None:
    """Read the class names from a model's configuration.

    Returns:
        Class names in the order of the head's outputs. None for a task without classes, and for transformers' default
        names, which only number the classes.
    """
    names = getattr(model_config, "id2label", None)
    if not get_task(task_type).predicts_classes or not isinstance(names, Mapping):
        return None
    # If numbers are missing, the keys are not positions in the head's outputs.
    if set(names) != set(range(len(names))):
        return None
    labels = tuple(str(names[i]) for i in range(len(names)))
    return None if labels == tuple(f"LABEL_{i}" for i in range(len(labels))) else labels


def parse_task_type(name: str) -> TaskType:
    """Parse the name of a task type.

    Raises:
        InputError: The task type is unknown.
    """
    return parse_choice("task type", name, TaskType)
