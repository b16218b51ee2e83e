"""Files of a model beside its weights: configurations, tokenizers, chat templates."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from ailora.atomic_io import replacing_file, write_bytes
from ailora.checkpoints.output_dir import OutputDir
from ailora.errors import InputError
from ailora.path_kind import is_directly_in

_BLOCK_BYTES = 16 * 2**20
#: Files in a model's folder that are not copied: weights, training states, adapters, code, documentation.
_NOT_COPIED = re.compile(
    r".*\.(safetensors|index\.json|bin|pt|pth|ckpt|h5|msgpack|gguf|onnx|ot|py|pyc|md)"
    r"|adapter_.*|ailora\.json|(training_args|trainer_state|optimizer|scheduler|scaler|rng_state).*|\..*"
)
#: Subfolders with files of the tokenizer.
_TOKENIZER_FOLDERS = ("chat_templates", "additional_chat_templates")


def list_auxiliary_files(source: Path) -> list[str]:
    """List the auxiliary files of a model, relative to its folder."""
    folders = [source, *(source / name for name in _TOKENIZER_FOLDERS)]
    files = [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir()) if file.is_file()]
    return [str(file.relative_to(source)) for file in files if not _NOT_COPIED.fullmatch(file.name)]


def copy_auxiliary_files(source: Path, output: OutputDir, *, changed: Mapping[str, bytes] | None = None) -> None:
    """Copy the auxiliary files of a model.

    Args:
        source: Folder of the model.
        output: Acquired folder.
        changed: File name -> content to write in place of a copy.

    Raises:
        InputError: A file is a link out of its folder.
    """
    names = list_auxiliary_files(source)
    for name in names:
        # Models are downloaded from strangers: a link could copy a private file of this machine into the output.
        if not is_directly_in(source / name, (source / name).parent):
            raise InputError(
                f"{source / name} is a link to {(source / name).resolve()}, outside its folder, and such links are "
                "not copied: replace the link by a copy of the file, or remove the link"
            )
    for name in names:
        target = output.folder / name
        target.parent.mkdir(exist_ok=True)
        if name in (changed or {}):
            write_bytes(target, (changed or {})[name])
            continue
        with (source / name).open("rb") as read, replacing_file(target) as stream:
            shutil.copyfileobj(read, stream, _BLOCK_BYTES)
