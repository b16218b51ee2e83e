"""Manifest of an output folder: names of the files that commands have written or begun."""

from __future__ import annotations

from pathlib import Path

from ailora.atomic_io import write_json
from ailora.checkpoints.folder_lock import STATE_DIR_NAME, read_state_file
from ailora.checkpoints.output_path import validate_no_links
from ailora.errors import InputError


class Manifest:
    """Names of the files that commands have written or begun in a folder.

    Attributes:
        is_new: Whether the folder has no manifest yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / STATE_DIR_NAME / "manifest.json"
        names = (read_state_file(self._file) or {}).get("written")
        self._names = {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
        self.is_new = not self._file.exists()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def validate(self, *names: str) -> None:
        """Refuse to replace unrecorded files.

        Args:
            names: Paths relative to the folder.

        Raises:
            InputError: A path or one of its parent folders is a link, or an unrecorded file exists.
        """
        validate_no_links(self._folder, names)
        for name in names:
            if name not in self and (self._folder / name).exists():
                raise InputError(
                    f"{self._folder / name} was not written by this command, which would replace it: move it away, or "
                    "choose another folder"
                )

    def claim(self, *names: str) -> None:
        """Record names before their files are written.

        Args:
            names: Paths relative to the folder. The folder must exist.

        Raises:
            InputError: A path or one of its parent folders is a link, or an unrecorded file exists.
        """
        self.validate(*names)
        # Record the names before writing the files, so that a file truncated by a kill is recognized as ours.
        self.adopt(*names)

    def adopt(self, *names: str) -> None:
        """Record names without checking existing files."""
        if not self._names.issuperset(names):
            self._names.update(names)
            write_json(self._file, {"written": sorted(self._names)})

    def remove(self) -> None:
        """Remove the manifest."""
        self._file.unlink(missing_ok=True)
