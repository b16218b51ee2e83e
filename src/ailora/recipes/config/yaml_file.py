"""Read and write YAML 1.2."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from ailora.errors import InputError
from ailora.formatting import shorten
from ailora.plain_data import read_text, validate_plain_data

_LINE_WIDTH = 110
#: Limit on the number of values in a file: with aliases, a short file can expand to more values than fit in memory.
_MAX_VALUES = 100_000
#: Numbers with a leading zero, such as `08`, and octal numbers such as `0o17`.
_ZERO_PADDED = re.compile(r"[-+]?0[0-9o_].*")


class _Constructor(SafeConstructor):
    """Constructor for YAML 1.2 that reads integers with a leading zero, or with the prefix `0o`, as strings."""

    def construct_yaml_int(self, node: ScalarNode) -> Any:
        # Earlier versions wrote run folders with PyYAML, which does not quote the string `08`.
        if _ZERO_PADDED.fullmatch(node.value):
            return node.value
        return super().construct_yaml_int(node)


_Constructor.add_constructor("tag:yaml.org,2002:int", _Constructor.construct_yaml_int)
# YAML 1.2 has no dates, and no configuration key takes a date.
_Constructor.add_constructor("tag:yaml.org,2002:timestamp", _Constructor.construct_yaml_str)


class _Representer(SafeRepresenter):
    """Representer that double-quotes strings with U+0085, which ruamel.yaml would write as a line break."""

    def represent_str(self, data: str) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if "\x85" in data else None)


_Representer.add_representer(str, _Representer.represent_str)


def read_yaml(file: Path) -> Any:
    """Read a YAML file.

    Returns:
        Plain data: mappings, lists, strings, numbers, booleans, None.

    Raises:
        InputError: The file cannot be read, or is not YAML; the message names the line.
    """
    return _load(read_text(file, kind="the configuration "), str(file), f"{file} is not YAML")


def parse_yaml(text: str, kind: str = "value") -> Any:
    """Parse YAML.

    Args:
        text: YAML document or single value.
        kind: Noun that error messages use for the text.

    Returns:
        Plain data.

    Raises:
        InputError: The text is not YAML.
    """
    shown_text = shorten(repr(text), 80)
    return _load(text, shown_text, f"{shown_text} is not a YAML {kind}")


def format_yaml(value: object) -> str:
    """Format plain data as YAML.

    Args:
        value: Plain data; the keys keep their order.

    Returns:
        YAML in block style.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    # ruamel.yaml sorts the keys of a dict by default.
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = _LINE_WIDTH
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue()


def _load(text: str, where: str, problem: str) -> Any:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        value = yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"{problem}: {line}{error.problem or error.context}") from None
    except RecursionError:
        raise InputError(f"{problem}: the nesting is too deep") from None
    # Errors of ruamel.yaml's reader have no line, and a tag such as !!bool raises KeyError or ValueError.
    except Exception as error:
        raise InputError(f"{problem}: {shorten(' '.join(str(error).split()), 500)}") from None
    validate_plain_data(value, where, max_values=_MAX_VALUES)
    return value
