"""Errors of the package. Messages name the object, the value, the allowed values and the next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import StrEnum
from typing import TypeVar

Choice = TypeVar("Choice", bound=StrEnum)


class AiloraError(Exception):
    """Base class of the errors raised by this package on purpose.

    Examples:
        >>> import torch
        >>> import ailora
        >>> try:
        ...     ailora.truncated_svd(torch.eye(3), 4, "principal")
        ... except ailora.AiloraError as error:
        ...     print(error)
        rank must be between 1 and 3, got 4 (matrix 3 x 3)
    """


class InputError(AiloraError, ValueError):
    """An argument, a configuration or a data file is invalid.

    Examples:
        >>> import torch
        >>> import ailora
        >>> try:
        ...     ailora.truncated_svd(torch.eye(3), 2, "principel")
        ... except ailora.InputError as error:
        ...     print(type(error).__name__, "did you mean 'principal'?" in str(error))
        InputError True
    """


class ModelError(AiloraError, ValueError):
    """A model cannot be adapted (for example because its modules have no known role), or does not fit an adapter.

    Examples:
        >>> import torch
        >>> import ailora
        >>> try:
        ...     ailora.get_plan(torch.nn.Linear(4, 4))
        ... except ailora.ModelError as error:
        ...     print(error)
        the model has no adapter 'default' made by ailora; it has: none
    """


class DivergenceError(AiloraError, ArithmeticError):
    """Training reached a loss, a gradient or a parameter that is not finite."""


class AnchorMismatchError(AiloraError, ValueError):
    """The anchor in an adapter file differs from the anchor of the model, or was changed by training without ailora.

    Examples:
        >>> import ailora
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
        >>> saved = ailora.adapt(BertModel(config), rank=4).state_dict()
        >>> try:
        ...     ailora.adapt(BertModel(config), rank=4).load_state_dict(saved)
        ... except ailora.AnchorMismatchError:
        ...     print("other weights, other anchors")
        other weights, other anchors
    """


#: Parts of torch's messages about allocations that failed in the CPU allocator or in CUDA's libraries. Torch raises a
#: plain RuntimeError for these failures.
_ALLOCATION_FAILURES = (
    "DefaultCPUAllocator",
    "unable to mmap",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Storage size calculation overflowed",
)


def describe_out_of_memory(error: BaseException) -> str | None:
    """Describe an exception caused by a lack of memory.

    Args:
        error: Any exception.

    Returns:
        Message of the exception in a single line, and the next step. None for any other exception.
    """
    text = " ".join(str(error).split())
    # Compare the class by name, because importing torch would take seconds.
    is_memory_error = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    is_allocation_failure = isinstance(error, RuntimeError) and any(part in text for part in _ALLOCATION_FAILURES)
    if not is_memory_error and not is_allocation_failure:
        return None
    # A MemoryError of Python usually has no message.
    return f"out of memory ({text or 'on the CPU'}): take a smaller batch or model"


def unknown_name(kind: str, name: object, allowed: Iterable[str]) -> InputError:
    """Build the error for a name outside `allowed`, with a similar allowed name as a hint.

    Args:
        kind: Kind of the named object for the message, for example `policy`.
        name: Name outside `allowed`.
        allowed: All allowed names.

    Returns:
        Error to raise.
    """
    names = list(allowed)
    nearest = difflib.get_close_matches(str(name), names, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    return InputError(f"unknown {kind} {name!r}{hint}; allowed: {', '.join(names) or 'none'}")


def parse_choice(kind: str, name: object, choices: type[Choice]) -> Choice:
    """Return the member of an enumeration that has a given value.

    Args:
        kind: Kind of the members for the error, for example `policy`.
        name: Value of the member, or the member itself.
        choices: Enumeration with the members.

    Returns:
        Member of the enumeration.

    Raises:
        InputError: No member has the value.
    """
    try:
        return choices(name)
    except ValueError:
        raise unknown_name(kind, name, [choice.value for choice in choices]) from None
