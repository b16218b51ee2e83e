"""Formats of models that are not read, and the commands that write such a model as safetensors."""

from __future__ import annotations

import shlex
from pathlib import Path

from ailora.errors import InputError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def refuse_gguf(path: Path) -> None:
    """Refuse a GGUF file, or a folder that holds one.

    Raises:
        InputError: how it is converted.
    """
    for file in _files(path, ("*.gguf",)):
        raise InputError(f"{file} is a GGUF file. {_gguf_conversion(file)}")


def refuse_pickles(path: Path) -> None:
    """Refuse a pickled checkpoint, or a folder that holds one: pickles run code when they are opened.

    Raises:
        InputError: how it is converted.
    """
    for file in _files(path, _PICKLES):
        folder = path if path.is_dir() else path.parent
        raise InputError(f"{file} is not a safetensors file, and {pickle_conversion(folder)}")


def pickle_conversion(model: Path | str) -> str:
    """Say that pickled checkpoints are refused, and which command writes one as safetensors."""
    return "pickled checkpoints are never opened. Convert it once, if you trust it: " + _python(
        f"import transformers as t; m = {str(model)!r}; c = t.AutoConfig.from_pretrained(m); "
        "getattr(t, c.architectures[0]).from_pretrained(m, use_safetensors=False).save_pretrained('CONVERTED'); "
        "t.AutoTokenizer.from_pretrained(m).save_pretrained('CONVERTED')"
    )


def _gguf_conversion(file: Path) -> str:
    """Say that GGUF is not read, and which command writes it as safetensors.

    A model that transformers has read from GGUF refuses to be saved: a fresh one takes its tensors.
    """
    return (
        "GGUF is not read: give the safetensors model that it was made from. Where that is gone, convert it; its "
        "quantization stays lost (pip install gguf): "
    ) + _python(
        f"import transformers as t; a = ({str(file.parent)!r},); k = {{'gguf_file': {file.name!r}}}; "
        "n = t.AutoModelForCausalLM.from_config(t.AutoConfig.from_pretrained(*a, **k)); "
        "n.load_state_dict(t.AutoModelForCausalLM.from_pretrained(*a, **k).state_dict()); "
        "n.save_pretrained('CONVERTED'); t.AutoTokenizer.from_pretrained(*a, **k).save_pretrained('CONVERTED')"
    )


def _files(path: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Return a file that has one of the patterns, or the files of a folder that have."""
    if path.is_dir():
        return [file for pattern in patterns for file in sorted(path.glob(pattern))]
    return [path] if any(path.match(pattern) for pattern in patterns) else []


def _python(statements: str) -> str:
    """Return a command to paste; in double quotes where nothing in it means something to a shell there."""
    plain = statements.isprintable() and not set(statements) & set('"$`\\!')
    return f'python -c "{statements}"' if plain else f"python -c {shlex.quote(statements)}"
