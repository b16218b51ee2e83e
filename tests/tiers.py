"""Tiers of tests: each runs in `make test`, from CI on (`ci`), or in `make test-all` only (`slow`)."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest


def in_tiers(values: Iterable[Any], *, fast: Container[Any], ci: Container[Any] | None = None) -> list[Any]:
    """Return the values of a parameter, each marked with its tier.

    Args:
        values: The values, in the order of the tests; a tuple has one for each of several parameters.
        fast: Those of `make test`.
        ci: Those of CI beyond them; None for all. The others run in `make test-all`.
    """

    def marks(value: Any) -> tuple[pytest.MarkDecorator, ...]:
        if value in fast:
            return ()
        return (pytest.mark.ci,) if ci is None or value in ci else (pytest.mark.slow,)

    def name(value: Any) -> str:
        return "-".join(str(part) for part in value) if isinstance(value, tuple) else str(value)

    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=marks(value), id=name(value))
        for value in values
    ]
