"""Unsupported formats of models, and commands that convert them to safetensors."""

from __future__ import annotations

import shlex
from pathlib import Path

from ailora.errors import InputError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def refuse_gguf(path: Path) -> None:
    """Refuse a GGUF file, or a folder with GGUF files.

    Raises:
        InputError: `path` is or contains a GGUF file. The message has the command for the conversion.
    """
    for file in _find_files(path, ("*.gguf",)):
        raise InputError(f"{file} is a GGUF file. {_gguf_conversion(file)}")


def refuse_pickles(path: Path) -> None:
    """Refuse a pickled checkpoint, or a folder with pickles, which run code when they are opened.

    Raises:
        InputError: `path` is or contains a pickle. The message has the command for the conversion.
    """
    for file in _find_files(path, _PICKLES):
        folder = path if path.is_dir() else path.parent
        raise InputError(f"{file} is not a safetensors file, and {pickle_conversion(folder)}")


def pickle_conversion(model: Path | str) -> str:
    """Return a sentence for errors about pickled checkpoints, with the command for the conversion."""
    return (
        "pickled checkpoints are never opened. If you trust the checkpoint, convert it once: "
        + _format_python_command(
            f"import transformers as t; m = {str(model)!r}; c = t.AutoConfig.from_pretrained(m); "
            "getattr(t, c.architectures[0]).from_pretrained(m, use_safetensors=False).save_pretrained('CONVERTED'); "
            "t.AutoTokenizer.from_pretrained(m).save_pretrained('CONVERTED')"
        )
    )


def _gguf_conversion(file: Path) -> str:
    """Return a sentence for errors about GGUF files, with the command for the conversion.

    transformers cannot save a model loaded from GGUF, so the command copies the tensors to a new model.
    """
    return (
        "GGUF is not supported: give the safetensors model from which the file was made. If that model is gone, "
        "convert the file (pip install gguf; this does not undo the loss from quantization): "
    ) + _format_python_command(
        f"import transformers as t; a = ({str(file.parent)!r},); k = {{'gguf_file': {file.name!r}}}; "
        "n = t.AutoModelForCausalLM.from_config(t.AutoConfig.from_pretrained(*a, **k)); "
        "n.load_state_dict(t.AutoModelForCausalLM.from_pretrained(*a, **k).state_dict()); "
        "n.save_pretrained('CONVERTED'); t.AutoTokenizer.from_pretrained(*a, **k).save_pretrained('CONVERTED')"
    )


def _find_files(path: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Return the files in a folder that match a pattern, or the file itself if it matches."""
    if path.is_dir():
        return [file for pattern in patterns for file in sorted(path.glob(pattern))]
    return [path] if any(path.match(pattern) for pattern in patterns) else []


def _format_python_command(statements: str) -> str:
    """Return a command to paste into a shell, in double quotes unless the shell would change quoted characters."""
    plain = statements.isprintable() and not set(statements) & set('"$`\\!')
    return f'python -c "{statements}"' if plain else f"python -c {shlex.quote(statements)}"
