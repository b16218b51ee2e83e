"""PEFT's task types, and what each of them means for transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from torch import nn

from ailora.errors import parse_choice


class TaskType(StrEnum):
    """PEFT's task types, written out: a plan and a model's roles need no PEFT, whose import takes seconds."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


@dataclass(frozen=True)
class Task:
    """What a task type means for transformers and PEFT.

    Attributes:
        title: the task in words.
        auto_class: the class of transformers that loads a model for it.
        recipe: name of the recipe that trains it; None if there is none.
        class_suffixes: how the names of its model classes end.
        peft_heads: heads that PEFT trains whole by itself.
        other_heads: new heads that PEFT does not know of: BART's and T5's.
    """

    title: str
    auto_class: str
    recipe: str | None = None
    class_suffixes: tuple[str, ...] = ()
    peft_heads: tuple[str, ...] = ()
    other_heads: tuple[str, ...] = ()

    @property
    def heads(self) -> tuple[str, ...]:
        """Modules that are new where a model gets a head for the task."""
        return (*self.peft_heads, *self.other_heads)

    @property
    def predicts_classes(self) -> bool:
        """Whether the rows of the head's last weight are the classes."""
        return "classifier" in self.peft_heads


#: The keys are members of `TaskType`; names that files hold find them as well.
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
    """Look up the task of a task type that a file holds; without one, or one of a later PEFT, nothing is known."""
    return TASKS.get(task_type or "", TASKS[TaskType.FEATURE_EXTRACTION])


def infer_task_type(model: nn.Module) -> TaskType | None:
    """Find the task type of a model's class.

    A classification model that is adapted without a task type would keep its new head frozen. PEFT's classes pass
    `input_ids` by name, so that models that read something else (images, sound) get none.

    Returns:
        The task type, or None if PEFT has none for the class.
    """
    if getattr(model, "main_input_name", None) != "input_ids":
        return None
    name = type(model).__name__
    if name.endswith("ForConditionalGeneration") and not getattr(model.config, "is_encoder_decoder", False):
        return None
    return next((TaskType(key) for key, task in TASKS.items() if name.endswith(task.class_suffixes)), None)


def default_heads(model: nn.Module, task_type: str | None) -> tuple[str, ...]:
    """Name the new heads of a model that PEFT does not know of."""
    heads = get_task(task_type).other_heads
    return tuple(name for name, _ in model.named_children() if name in heads)


def read_labels(model_config: object, task_type: str | None) -> tuple[str, ...] | None:
    """Read the names of the classes from the configuration of a model.

    Returns:
        The names in the order of the head's outputs; None for a task without classes, and for the numbered names that
        transformers gives a head by itself.
    """
    names = getattr(model_config, "id2label", None)
    if not get_task(task_type).predicts_classes or not isinstance(names, Mapping):
        return None
    if set(names) != set(range(len(names))):
        return None
    labels = tuple(str(names[i]) for i in range(len(names)))
    return None if labels == tuple(f"LABEL_{i}" for i in range(len(labels))) else labels


def parse_task_type(name: str) -> TaskType:
    """Parse one of PEFT's task types.

    Raises:
        InputError: PEFT has no such task type.
    """
    return parse_choice("task type", name, TaskType)
