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
#: Files in a model's folder that are not copied: weights, training states, adapters, code, documentation, hidden files.
_NOT_COPIED = re.compile(
    r".*\.(safetensors|index\.json|bin|pt|pth|ckpt|h5|msgpack|gguf|onnx|ot|py|pyc|md)"
    r"|adapter_.*|ailora\.json|(training_args|trainer_state|optimizer|scheduler|scaler|rng_state).*|\..*"
)
#: Names of the subfolders that sentence-transformers writes for its modules, such as `1_Pooling`.
_MODULE_FOLDER_NAME = re.compile(r"[0-9]+_\w+")
#: Files with the weights of a module of sentence-transformers.
_MODULE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
#: Subfolders with files of the tokenizer.
_TOKENIZER_FOLDERS = ("chat_templates", "additional_chat_templates")
#: File that transformers writes for every tokenizer.
_TOKENIZER_CONFIG = "tokenizer_config.json"
#: Names of the files that the tokenizers of transformers write.
_TOKENIZER_FILES = re.compile(
    r"(tokenizer|chat_template|added_tokens|special_tokens_map|vocab|merges|tekken).*"
    r"|.*vocab\.json|.*\.(model|spm|codes|tokenizer)"
    r"|(word_shape|word_pronunciation|emoji|byte_maps|normalizer)\.json|dict\.txt"
)


def find_auxiliary_files(source: Path, *, tokenizer: Mapping[str, Path] | None = None) -> dict[str, Path]:
    """Find the auxiliary files of a model.

    Args:
        source: Folder of the model.
        tokenizer: Files of a tokenizer that replaces the model's tokenizer, by their path in the output. None or an
            empty mapping keeps the model's tokenizer.

    Returns:
        Files by their path in the output.
    """
    module_folders = _find_module_folders(source)
    # `_tokenizer_folders` includes `source` itself.
    folders = [*_tokenizer_folders(source), *module_folders]
    files = [file for folder in folders for file in _list_files(folder)]
    copied = [file for file in files if not _NOT_COPIED.fullmatch(file.name)]
    # The weights of these modules, such as a dense layer after the pooling, are not part of the merged transformer.
    copied += [file for file in files if file.parent in module_folders and file.name in _MODULE_WEIGHTS]
    if tokenizer:
        copied = [file for file in copied if file.parent in module_folders or not _belongs_to_tokenizer(file, source)]
    return {str(file.relative_to(source)): file for file in copied} | dict(tokenizer or {})


def find_tokenizer_files(folder: Path) -> dict[str, Path]:
    """Find the files of the tokenizer in a folder, by their path relative to the folder. Empty without a tokenizer."""
    if not (folder / _TOKENIZER_CONFIG).is_file():
        return {}
    files = [file for part in _tokenizer_folders(folder) for file in _list_files(part)]
    return {str(file.relative_to(folder)): file for file in files if _belongs_to_tokenizer(file, folder)}


def _belongs_to_tokenizer(file: Path, folder: Path) -> bool:
    """Return whether a file belongs to the tokenizer in a folder.

    Args:
        file: File in the folder, or in one of its `_TOKENIZER_FOLDERS`, where the name does not matter.
        folder: Folder of the tokenizer.
    """
    if _NOT_COPIED.fullmatch(file.name):
        return False
    return file.parent != folder or _TOKENIZER_FILES.fullmatch(file.name) is not None


def _tokenizer_folders(folder: Path) -> list[Path]:
    return [folder, *(folder / name for name in _TOKENIZER_FOLDERS)]


def _list_files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.is_file()] if folder.is_dir() else []


def _find_module_folders(source: Path) -> list[Path]:
    """Find the subfolders listed in sentence-transformers' `modules.json`, except those with a transformers model.

    Raises:
        InputError: `modules.json` is not JSON.
    """
    file = source / "modules.json"
    modules = read_json(file) if file.is_file() else []
    entries = [module for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    paths = [path for entry in entries if isinstance(path := entry.get("path"), str)]
    # A path with several parts could leave the folder.
    folders = [source / path for path in dict.fromkeys(paths) if _MODULE_FOLDER_NAME.fullmatch(path)]
    # The output holds the merged weights of the transformer, and must not hold the unmerged weights too.
    return [folder for folder in folders if "model_type" not in _read_config(folder)]


def _read_config(folder: Path) -> Mapping[str, object]:
    file = folder / "config.json"
    return read_json_object(file) if file.is_file() else {}


def copy_auxiliary_files(
    files: Mapping[str, Path], output: OutputDir, *, changed: Mapping[str, bytes] | None = None
) -> None:
    """Copy the auxiliary files of a model.

    Args:
        files: Files by their path in the output, the result of `find_auxiliary_files`.
        output: Acquired folder.
        changed: Path in the output -> content to write in place of a copy.

    Raises:
        InputError: A file is a link out of its folder.
    """
    for name, file in files.items():
        # Folder of the model or tokenizer, to which `name` is relative.
        source = file.parents[len(Path(name).parts) - 1]
        # Models are downloaded from strangers: a link could copy a private file of this machine into the output.
        if not is_directly_in(file, file.parent) or not file.parent.resolve().is_relative_to(source.resolve()):
            raise InputError(
                f"{file} is a link to {file.resolve()}, outside its folder, and such links are "
                "not copied: replace the link by a copy of the file, or remove the link"
            )
    for name, file in files.items():
        target = output.folder / name
        target.parent.mkdir(exist_ok=True)
        if name in (changed or {}):
            write_bytes(target, (changed or {})[name])
            continue
        with file.open("rb") as input_stream, replacing_file(target) as output_stream:
            shutil.copyfileobj(input_stream, output_stream, _BLOCK_BYTES)
