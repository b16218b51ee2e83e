"""Which of PEFT's task types a model class stands for."""

from __future__ import annotations

from torch import nn

from ailora.errors import unknown_name

#: PEFT's task types, written out: a plan and a model's roles need no PEFT, whose import takes seconds.
TASK_TYPES = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")

#: end of a transformers class name -> PEFT task type
_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}


def infer_task_type(model: nn.Module) -> str | None:
    """The PEFT task type of a model's class, or None where PEFT has none.

    A classification model that is adapted without a task type would keep its new head frozen. PEFT's classes pass
    `input_ids` by name, so that models that read something else (images, sound) get none.
    """
    if getattr(model, "main_input_name", None) != "input_ids":
        return None
    name = type(model).__name__
    if name.endswith("ForConditionalGeneration") and not getattr(model.config, "is_encoder_decoder", False):
        return None
    return next((task for suffix, task in _TASKS.items() if name.endswith(suffix)), None)


def default_heads(model: nn.Module, task_type: str | None) -> tuple[str, ...]:
    """New heads that PEFT does not know of for a task: it trains `classifier` and `score`, BART and T5 have others."""
    heads = ("classification_head",) if task_type in ("SEQ_CLS", "TOKEN_CLS") else ()
    return tuple(name for name, _ in model.named_children() if name in heads)


def parse_task_type(name: str) -> str:
    """One of PEFT's task types.

    Raises:
        InputError: PEFT has no such task type.
    """
    if name not in TASK_TYPES:
        raise unknown_name("task type", name, TASK_TYPES)
    return name
