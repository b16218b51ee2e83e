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
from ailora.plain_data import read_json, read_json_object

_BLOCK_BYTES = 16 * 2**20
#: Files in a model's folder that are not copied: weights, training states, adapters, code, documentation.
_NOT_COPIED = re.compile(
    r".*\.(safetensors|index\.json|bin|pt|pth|ckpt|h5|msgpack|gguf|onnx|ot|py|pyc|md)"
    r"|adapter_.*|ailora\.json|(training_args|trainer_state|optimizer|scheduler|scaler|rng_state).*|\..*"
)
#: Subfolders of modules, as sentence-transformers names them: `1_Pooling`.
_FOLDER_NAME = re.compile(r"[0-9]+_\w+")
#: Files with the weights of such a module.
_MODULE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
#: Subfolders with files of the tokenizer.
_TOKENIZER_FOLDERS = ("chat_templates", "additional_chat_templates")


def list_auxiliary_files(source: Path) -> list[str]:
    """List the auxiliary files of a model, relative to its folder."""
    folders = [source, *(source / name for name in _TOKENIZER_FOLDERS)]
    modules = _find_module_folders(source)
    files = [file for folder in [*folders, *modules] for file in _list_files(folder)]
    copied = [file for file in files if not _NOT_COPIED.fullmatch(file.name)]
    # The weights of these modules, such as a dense layer after the pooling, are not part of the merged transformer.
    copied += [file for file in files if file.parent in modules and file.name in _MODULE_WEIGHTS]
    return [str(file.relative_to(source)) for file in copied]


def _list_files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.is_file()] if folder.is_dir() else []


def _find_module_folders(source: Path) -> list[Path]:
    """Find the subfolders that the `modules.json` of sentence-transformers names, without those of transformers.

    Raises:
        InputError: `modules.json` is not JSON.
    """
    file = source / "modules.json"
    modules = read_json(file) if file.is_file() else []
    paths = [module.get("path") for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    # A path with several parts could leave the folder.
    folders = [source / path for path in dict.fromkeys(paths) if isinstance(path, str) and _FOLDER_NAME.fullmatch(path)]
    # The output holds the merged weights of the transformer, and must not hold the unmerged weights too.
    return [folder for folder in folders if "model_type" not in _read_config(folder)]


def _read_config(folder: Path) -> Mapping[str, object]:
    file = folder / "config.json"
    return read_json_object(file) if file.is_file() else {}


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
        file = source / name
        # Models are downloaded from strangers: a link could copy a private file of this machine into the output.
        if not is_directly_in(file, file.parent) or not file.parent.resolve().is_relative_to(source.resolve()):
            raise InputError(
                f"{file} is a link to {file.resolve()}, outside its folder, and such links are "
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
