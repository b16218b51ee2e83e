"""Exit codes of commands, and the line that reports an error.

| code | meaning |
|---|---|
| 0, 1 | result of the command, such as the verdict of `ailora verify` |
| 2 | invalid input, or insufficient permissions, disk space or memory |
| 70 | bug (EX_SOFTWARE in sysexits.h) |
| 130 | interrupted (128 + SIGINT) |
| 141 | output closed by its reader (128 + SIGPIPE) |
"""

from __future__ import annotations

import errno
import io
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
from ailora.cli.extras import describe_missing_extra
from ailora.errors import AiloraError, describe_out_of_memory
from ailora.formatting import escape_controls
from ailora.redaction import mask_argument

_REFUSED, _BUG, _INTERRUPTED, _CLOSED = 2, 70, 130, 141
#: Numbers of system errors that the machine causes, such as a full disk. Any other system error here is a bug, because
#: commands turn those that users cause, such as a missing file, into an `AiloraError`.
_MACHINE_ERRORS = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENAMETOOLONG),
    }
)


def open_closed_streams() -> None:
    """Connect closed standard streams to the null device."""
    # Otherwise, a file opened later would get the free descriptor, and printed output would be written into the file.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # `os.open` returns the lowest free descriptor, which is this one.
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # No context manager: the stream must stay open until the process ends.
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115


def escape_unencodable_output() -> None:
    """Let standard output escape characters that its encoding lacks, as standard error does."""
    # Otherwise, a name such as `modèle` would end a command with an error if the terminal is not UTF-8.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def exit_code(error: BaseException, arguments: Sequence[str], *, debug: bool) -> int | str | None:
    """Report the exception of a failed command in a single line, and return the exit code.

    Args:
        error: Exception raised by the command; SystemExit if the command ended normally.
        arguments: Command line, without the name of the program.
        debug: Whether to print the traceback.

    Returns:
        The exit code; see the table at the top of this module.
    """
    if _is_output_closed(error):
        _discard_output()
        return _CLOSED
    # typer turns Ctrl-C into SystemExit(130).
    if isinstance(error, SystemExit) and error.code != _INTERRUPTED:
        return error.code
    if debug:
        _print("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, KeyboardInterrupt | SystemExit):
        _print("ailora: interrupted")
        return _INTERRUPTED
    if (message := _describe_user_error(error, arguments)) is not None:
        _print(f"ailora: error: {message}")
        return _REFUSED
    _print(f"ailora: error: {_describe_bug(error, arguments, debug=debug)}")
    return _BUG


def _describe_user_error(error: BaseException, arguments: Sequence[str]) -> str | None:
    """Return the message for an error in the input or of the machine. None if the error is a bug."""
    if isinstance(error, AiloraError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and arguments:
        return describe_missing_extra(error, command=arguments[0])
    # For a missing model, transformers raises an OSError without errno, with a message for users.
    if isinstance(error, OSError) and (error.errno is None or error.errno in _MACHINE_ERRORS):
        return _join_lines(error)
    return describe_out_of_memory(error)


def _describe_bug(error: BaseException, arguments: Sequence[str], *, debug: bool) -> str:
    """Describe a bug in a single line, and write the traceback to a temporary file, unless `debug`."""
    command = shlex.join(["ailora", *map(mask_argument, arguments)])
    summary = f"{type(error).__name__}: {_join_lines(error)} in `{command}`"
    place = _find_place_in_user_code(error)
    advice = f"raised at {place}, in your own code" if place else "this is a bug, please report it"
    if debug:
        return f"{summary}: {advice}"
    content = f"ailora {ailora.__version__}, Python {sys.version}\n{command}\n\n"
    content += "".join(traceback.format_exception(error))
    try:
        # `tempfile` creates files with mode 0600, so that no other user can read the traceback.
        with tempfile.NamedTemporaryFile("wb", prefix="ailora-", suffix=".txt", delete=False) as file:
            # Arguments and messages may contain paths that are not UTF-8.
            file.write(content.encode(errors="backslashreplace"))
    except OSError:
        return f"{summary}: {advice}; --debug prints the traceback"
    return f"{summary}: {advice}; traceback: {file.name}"


def _find_place_in_user_code(error: BaseException) -> str | None:
    """Return file and line number of the innermost frame in the user's code, or None if there is no such frame."""
    installed = {*sysconfig.get_paths().values(), str(Path(ailora.__file__).parent)}
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_file() and not any(Path(frame.filename).is_relative_to(path) for path in installed)
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def _is_output_closed(error: BaseException | None) -> bool:
    """Return whether printing failed because the reader of the output has ended."""
    # typer and rich turn a BrokenPipeError into SystemExit. Any other exception after a BrokenPipeError, such as that
    # of a lost connection to a database, has a message for users.
    while isinstance(error, SystemExit):
        error = error.__cause__ or error.__context__
    return isinstance(error, BrokenPipeError)


def _discard_output() -> None:
    """Connect standard output to the null device."""
    # The interpreter flushes standard output at exit, and would print an error for a closed pipe.
    null_device = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError, ValueError):
        os.dup2(null_device, sys.stdout.fileno())


def _join_lines(error: BaseException) -> str:
    return " ".join(str(error).split())


def _print(text: str) -> None:
    with suppress(OSError):
        print("\n".join(map(escape_controls, text.split("\n"))), file=sys.stderr)
