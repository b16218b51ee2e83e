"""What can go wrong, said so that the reader knows what was asked, where, and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import StrEnum
from typing import TypeVar

Choice = TypeVar("Choice", bound=StrEnum)


class AiloraError(Exception):
    """Every error that this package raises on purpose."""


class InputError(AiloraError, ValueError):
    """An argument, a configuration or a data file asks for something that is not allowed."""


class ModelError(AiloraError, ValueError):
    """A model cannot be adapted as asked: its modules are unknown, its weights unusable, its name taken."""


class DivergenceError(AiloraError, ArithmeticError):
    """Training came to a loss, a gradient or a parameter that is not finite."""


class AnchorMismatchError(AiloraError, ValueError):
    """An adapter file was made for another start than the adapted model it is loaded into."""


def unknown_name(kind: str, name: object, allowed: Iterable[str]) -> InputError:
    """The error for a name that is not among `allowed`, with the nearest one when there is one."""
    names = list(allowed)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return InputError(f"unknown {kind} {name!r}{hint}; allowed: {', '.join(names) or 'none'}")


def parse_choice(kind: str, name: object, choices: type[Choice]) -> Choice:
    """The member of an enumeration that a name stands for.

    Raises:
        InputError: no member has that name.
    """
    try:
        return choices(name)
    except ValueError:
        raise unknown_name(kind, name, [choice.value for choice in choices]) from None
