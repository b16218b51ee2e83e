"""Output files: files written by ailora may be replaced, but all other files only with `--force`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from ailora.atomic_io import link_error
from ailora.checkpoints.output_path import resolve_output_path, writing
from ailora.errors import InputError

#: Suffix -> pattern of the metadata by which ailora marks its files. Tables and Markdown have no place for a mark, so
#: existing ones are replaced only with `force`.
_MARKS: Mapping[str, re.Pattern[bytes]] = MappingProxyType(
    {
        ".html": re.compile(rb'<meta name="generator" content="ailora \d'),
        ".svg": re.compile(rb"<dc:creator>\s*<cc:Agent>\s*<dc:title>ailora \d"),
        ".pdf": re.compile(rb"/Creator \(ailora \d"),
        ".png": re.compile(rb"Software\0ailora \d"),
    }
)


def has_ailora_mark(file: Path) -> bool:
    """Return whether a file has the mark of ailora."""
    mark = _MARKS.get(file.suffix)
    return mark is not None and mark.search(file.read_bytes()) is not None


def validate_output_file(file: Path | str, *, force: bool, reads: Iterable[Path | str] = ()) -> Path:
    """Refuse an output path at which no file can be written, and an existing file without the mark of ailora.

    Args:
        file: File to write.
        force: Whether to accept a file without the mark.
        reads: Input files and folders. An input without the mark is refused even with `force`.

    Returns:
        Path of the file, with `~` expanded.

    Raises:
        InputError: The path is a folder, a link or a special file; the parent folder is missing; or the file exists
            without the mark, and is an input or `force` is False.
    """
    output = resolve_output_path(file)
    with writing(output):
        _validate_place(output)
        if output.exists() and not has_ailora_mark(output):
            _validate_not_an_input(output, reads)
            if not force:
                raise InputError(
                    f"{output} exists, and has no mark of ailora: choose another file, or use --force to replace it"
                )
    return output


def _validate_place(output: Path) -> None:
    if output.is_symlink():
        raise link_error(output)
    if output.is_dir():
        raise InputError(f"{output} is a folder, expected the path of a file")
    if output.exists() and not output.is_file():
        raise InputError(f"{output} is not a regular file: choose another file")
    if not output.parent.is_dir():
        raise InputError(f"{output}: there is no folder {output.parent}")


def _validate_not_an_input(output: Path, reads: Iterable[Path | str]) -> None:
    for input_path in map(Path, reads):
        if input_path.is_dir() and output.resolve().is_relative_to(input_path.resolve()):
            raise InputError(f"{output} belongs to {input_path}, which is an input: choose another output")
        # `samefile` also recognizes hard links.
        if input_path.exists() and output.samefile(input_path):
            raise InputError(f"{output} is an input, and the output would replace it: choose another output")
