"""Exit codes of commands, and the line that reports an error.

| code | meaning |
|---|---|
| 0, 1 | result of the command, such as the verdict of `ailora verify` |
| 2 | invalid input, or insufficient permissions, disk or memory |
| 70 | a bug (EX_SOFTWARE of sysexits.h) |
| 130 | interrupted (128 + SIGINT) |
| 141 | the reader of the output has gone (128 + SIGPIPE) |
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import ailora
from ailora.cli.extras import missing_extra
from ailora.errors import AiloraError, describe_out_of_memory
from ailora.formatting import escape_controls
from ailora.redaction import mask_argument

_REFUSED, _BUG, _INTERRUPTED, _CLOSED = 2, 70, 130, 141
#: System errors caused by the machine; others, such as a missing file, are reported earlier unless there is a bug.
_MACHINE_ERRORS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENAMETOOLONG),
    }
)


def open_closed_streams() -> None:
    """Connect closed standard streams to the null device: files opened later would get their descriptors."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # The stream lives as long as the process.
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115


def exit_code(error: BaseException, arguments: Sequence[str], *, debug: bool) -> int | str | None:
    """Print one line about the exception that ended a command, and return the exit code.

    Args:
        error: Exception of the command; SystemExit if the command ended normally.
        arguments: Command line, without the program.
        debug: Whether to print the traceback.

    Returns:
        The exit code; see the table of this module.
    """
    if _is_caused_by(error, BrokenPipeError):
        _discard_output()
        return _CLOSED
    if isinstance(error, SystemExit) and error.code != _INTERRUPTED:
        return error.code
    if debug:
        _print("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, KeyboardInterrupt | SystemExit):
        _print("ailora: interrupted")
        return _INTERRUPTED
    if (message := _refusal(error, arguments)) is not None:
        _print(f"ailora: error: {message}")
        return _REFUSED
    _print(f"ailora: error: {_bug_report(error, arguments, debug=debug)}")
    return _BUG


def _refusal(error: BaseException, arguments: Sequence[str]) -> str | None:
    """Return the message of an error that is no bug, or None."""
    if isinstance(error, AiloraError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and arguments:
        return missing_extra(error, command=arguments[0])
    # transformers raises OSError without a number for models that are missing, with sentences as texts.
    if isinstance(error, OSError) and (error.errno is None or error.errno in _MACHINE_ERRORS):
        return _one_line(error)
    return describe_out_of_memory(error)


def _bug_report(error: BaseException, arguments: Sequence[str], *, debug: bool) -> str:
    """Describe a bug in one line, and write its traceback to a temporary file unless it is printed."""
    command = shlex.join(["ailora", *map(mask_argument, arguments)])
    summary = f"{type(error).__name__}: {_one_line(error)} in `{command}`"
    place = _place_in_user_code(error)
    advice = f"raised at {place}, in code of yours" if place else "this is a bug, please report it"
    if debug:
        return f"{summary}: {advice}"
    content = f"ailora {ailora.__version__}, Python {sys.version}\n{command}\n\n"
    content += "".join(traceback.format_exception(error))
    try:
        # Files of `tempfile` have the mode 0600: nobody else can read the traceback.
        with tempfile.NamedTemporaryFile("w", prefix="ailora-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(content)
    except OSError:
        return f"{summary}: {advice}, with what `--debug` prints"
    return f"{summary}: {advice}, with {file.name}" if not place else f"{summary}: {advice}; see {file.name}"


def _place_in_user_code(error: BaseException) -> str | None:
    """Return file and line of the innermost frame in code of the user, or None."""
    installed = {*sysconfig.get_paths().values(), str(Path(ailora.__file__).parent)}
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_file() and not any(Path(frame.filename).is_relative_to(path) for path in installed)
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def _is_caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Return whether an exception, or one of its causes or contexts, is of a kind."""
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False


def _discard_output() -> None:
    """Connect standard output to the null device: the interpreter would complain when flushing at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError, ValueError):
        os.dup2(nowhere, sys.stdout.fileno())


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _print(text: str) -> None:
    with suppress(OSError):
        print("\n".join(map(escape_controls, text.split("\n"))), file=sys.stderr)
