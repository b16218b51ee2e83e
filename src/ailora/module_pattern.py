"""Match module names with regular expressions from configurations and adapter files, with a time limit."""

from __future__ import annotations

import re
import time

import regex

from ailora.errors import InputError

#: CPU time in seconds for all searches together, in addition to the time granted to each search.
_LIMIT_S = 1.0
#: CPU time in seconds granted to each search: ten times that of an ordinary search.
_SEARCH_S = 20e-6
#: Largest number of characters of a pattern. A pattern that lists all linear layers of a large model is shorter.
_MAX_LENGTH = 200_000
#: Largest product of the counts in a pattern. Compiling unrolls counted repetitions, and nested ones could fill the
#: memory.
_MAX_REPETITIONS = 10_000
#: Counted repetition: `{m}`, `{m,}`, `{,n}` or `{m,n}`.
_COUNTS = re.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}")


class ModulePatterns:
    """Regular expressions from a configuration, with a time limit for all searches together.

    The limit stops patterns from untrusted files that would search forever.

    Args:
        where: File or argument with the patterns, for messages.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._compiled: dict[str, regex.Pattern[str]] = {}
        self._remaining_s = _LIMIT_S

    def search(self, pattern: object, name: str) -> bool:
        """Return whether a pattern matches a part of a name.

        Raises:
            InputError: The pattern is not a regular expression, or the searches take too long.
        """
        return self._run(pattern, "search", name)

    def fullmatch(self, pattern: object, name: str) -> bool:
        """Return whether a pattern matches a whole name.

        Raises:
            InputError: The pattern is not a regular expression, or the searches take too long.
        """
        return self._run(pattern, "fullmatch", name)

    def validate(self, pattern: object) -> None:
        """Refuse a pattern that is not a regular expression.

        Raises:
            InputError: The pattern is not a regular expression.
        """
        self.search(pattern, "")

    def _run(self, pattern: object, method: str, name: str) -> bool:
        started = time.thread_time()
        compiled = self._compile(pattern)
        try:
            match = getattr(compiled, method)(name, timeout=self._remaining_s)
        except (TimeoutError, RecursionError, MemoryError):
            match, self._remaining_s = None, 0.0
        self._remaining_s += _SEARCH_S - (time.thread_time() - started)
        # A timeout sets the remaining time to 0 above, so that at most `_SEARCH_S` remains here.
        if self._remaining_s <= _SEARCH_S:
            raise InputError(
                f"{self._where}: {compiled.pattern[:80]!r} exceeds the time limit of {_LIMIT_S:g} s for all patterns "
                "together: write the pattern without nested repetitions"
            )
        return match is not None

    def _compile(self, pattern: object) -> regex.Pattern[str]:
        if not isinstance(pattern, str):
            raise InputError(f"{self._where}: {pattern!r} is not a regular expression: expected a string")
        if pattern not in self._compiled:
            try:
                _validate_size(pattern)
                self._compiled[pattern] = regex.compile(pattern)
            except (regex.error, ValueError, RecursionError, OverflowError, MemoryError) as error:
                raise InputError(f"{self._where}: {pattern[:80]!r} is not a regular expression: {error}") from None
        return self._compiled[pattern]


def _validate_size(pattern: str) -> None:
    if len(pattern) > _MAX_LENGTH:
        raise ValueError(f"{len(pattern):,} characters, at most {_MAX_LENGTH:,} are allowed")
    repetitions = 1
    for counts in _COUNTS.findall(pattern):
        # Nine digits are enough to exceed the limit. `int` raises ValueError for more than 4,300 digits.
        repetitions *= max([1, *(int(count[:9]) for count in counts if count)])
    if repetitions > _MAX_REPETITIONS:
        raise ValueError(f"counts multiply to {repetitions:,} repetitions, at most {_MAX_REPETITIONS:,} are allowed")
