"""YAML as configurations use it: numbers as in YAML 1.2, no key twice, errors of one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ailora.errors import InputError


def read_yaml(file: Path) -> Any:
    """The content of a YAML file.

    Raises:
        InputError: the file cannot be read, or is not YAML (with the line).
    """
    try:
        return yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(f"cannot read the configuration {file}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{file} is not YAML: {_one_line(error)}") from None


def parse_yaml(text: str, kind: str = "value") -> Any:
    """The value that a piece of YAML stands for.

    Raises:
        InputError: it is not YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{text!r} is not a YAML {kind}: {_one_line(error)}") from None


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads `1e-3` as a number, as YAML 1.2 does, and refuses a key that is there twice."""

    # While nodes are composed: `<<` adds keys later, and those may well be given again.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        mapping = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in mapping.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (same := (key.tag, key.value)) in lines:
                problem = f"the key {key.value!r} is there twice, first in line {lines[same]}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines[same] = key.start_mark.line + 1
        return mapping


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _one_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, yaml.MarkedYAMLError) and mark is not None:
        return f"line {mark.line + 1}: {error.problem or error.context}"
    return " ".join(str(error).split())
