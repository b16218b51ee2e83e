"""Paths of outputs: resolve them, keep them apart from inputs, and explain failed writes."""

from __future__ import annotations

import errno
import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

from ailora.atomic_io import link_error
from ailora.errors import InputError
from ailora.formatting import truncate

#: Maximum number of characters of a path in an error message.
_MAX_PATH_CHARS = 60
#: Message in which safetensors and tokenizers, both written in Rust, report an error of the operating system.
_RUST_OS_ERROR = re.compile(r"([^: ][^:]*) \(os error (\d+)\)")
#: Errors of a full disk, an exhausted quota, a file size limit, a read-only file system and a defective disk.
_WRITE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def resolve_output_path(path: Path | str) -> Path:
    """Return the path of an output file or folder, with `~` expanded. Links are kept.

    Raises:
        InputError: The path is invalid on this system.
    """
    if not isinstance(path, str | Path) or not str(path):
        raise InputError(f"expected a path to write to, got {path!r}")
    try:
        resolved = Path(path).expanduser()
        # `lstat` raises for a path that cannot exist, for example because a name is too long or has a null byte.
        with suppress(FileNotFoundError, NotADirectoryError):
            resolved.lstat()
    except (OSError, ValueError, RuntimeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        shown = truncate(repr(str(path)), _MAX_PATH_CHARS)
        raise InputError(f"expected a path to write to, got {shown}: {reason}") from None
    return resolved


@contextmanager
def writing(path: Path) -> Generator[None, None, None]:
    """Convert an error of the operating system into an `InputError` with the path and the reason.

    Raises:
        InputError: Writing failed, for example because the disk is full or a permission is missing.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def explain_failed_write(error: BaseException, folder: Path) -> str | None:
    """Return the reason for a failed write below a folder, from the exception of any library.

    Args:
        error: The exception.
        folder: Folder to write to.

    Returns:
        The reason. None if the exception has a cause other than writing.
    """
    if isinstance(error, OSError):
        # A permission may also be missing for reading or downloading, so it counts only for paths below the folder.
        is_below = isinstance(error.filename, str) and Path(error.filename).is_relative_to(folder)
        is_denied = error.errno in (errno.EACCES, errno.EPERM) and is_below
        return error.strerror if is_denied or error.errno in _WRITE_ERRNOS else None
    if (match := _RUST_OS_ERROR.search(str(error))) and int(match[2]) in _WRITE_ERRNOS:
        return match[1]
    # The zip writer of torch.save raises a RuntimeError without the reason.
    if isinstance(error, RuntimeError) and "inline_container.cc" in str(error):
        return "torch could not write a file: is the disk full?"
    return None


def validate_inputs_outside(folder: Path, reads: Iterable[Path], writes: Iterable[str] = ()) -> None:
    """Refuse an output folder that contains inputs of the command, directly or through links.

    Args:
        folder: Output folder.
        reads: Input files and folders; missing ones are ignored.
        writes: Paths of the output files, relative to the folder.

    Raises:
        InputError: An input is inside. The message names the input.
    """
    # A subfolder of the output may be a link to another folder.
    output_folders = {folder.resolve(), *((folder / name).parent.resolve() for name in writes)}
    for path in filter(Path.exists, reads):
        # If the input is a link, neither the link nor its target may be inside.
        target, location = path.resolve(), path.parent.resolve() / path.name
        if output_folders & {target, *target.parents, *location.parents}:
            raise InputError(f"{path} is an input inside the output folder {folder}: choose another output folder")


def validate_no_links(folder: Path, names: Iterable[str]) -> None:
    """Refuse links among output files and their parent folders.

    Args:
        folder: Output folder. Its own path may contain links.
        names: Paths relative to the folder.

    Raises:
        InputError: A path is a link. The message names the link.
    """
    paths = [folder / name for name in names]
    paths_and_parents = {path for output in paths for path in (output, *output.parents)}
    for path in sorted(paths_and_parents):
        if folder in path.parents and path.is_symlink():
            raise link_error(path)
