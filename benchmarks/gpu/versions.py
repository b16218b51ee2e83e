"""Names and versions of what is measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from part import PartArguments, parse_arguments

NAMES = ("ailora", "torch", "transformers", "peft", "accelerate", "trl", "optuna", "numpy", "scipy", "bitsandbytes")


def version_or_none(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main(arguments: PartArguments) -> None:
    figures: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "tiny": arguments.tiny,
        "versions": {name: version_or_none(name) for name in NAMES},
    }
    if arguments.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        figures |= {"memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    versions = ", ".join(f"{name} {number}" for name, number in figures["versions"].items() if number)
    line = f"{arguments.recorder.device}, {figures['cores']} cores, Python {figures['python']}, {versions}"
    arguments.recorder.write("versions", figures, line)


if __name__ == "__main__":
    main(parse_arguments("versions"))
