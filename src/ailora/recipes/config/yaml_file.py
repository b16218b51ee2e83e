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

from ailora.errors import InputError
from ailora.formatting import shorten
from ailora.plain_data import read_text, validate_plain_data

_LINE_WIDTH = 110
#: Aliases let a page of YAML stand for more values than fit in memory.
_MAX_VALUES = 100_000
_ZERO_PADDED = re.compile(r"[-+]?0[0-9o_].*")


class _Constructor(SafeConstructor):
    """Reads `08` as text: so it stands in run folders that PyYAML wrote, and zeros are put before names of things.

    Dates are text too, as YAML 1.2 has it: nothing here takes a date.
    """

    def construct_yaml_int(self, node: ScalarNode) -> Any:
        if _ZERO_PADDED.fullmatch(node.value):
            return node.value
        return super().construct_yaml_int(node)


_Constructor.add_constructor("tag:yaml.org,2002:int", _Constructor.construct_yaml_int)
_Constructor.add_constructor("tag:yaml.org,2002:timestamp", _Constructor.construct_yaml_str)


def read_yaml(file: Path) -> Any:
    """Read a YAML file.

    Raises:
        InputError: the file cannot be read, or is not YAML (with the line).
    """
    return _load(read_text(file, kind="the configuration "), str(file), f"{file} is not YAML")


def parse_yaml(text: str, kind: str = "value") -> Any:
    """Parse a piece of YAML.

    Raises:
        InputError: it is not YAML.
    """
    return _load(text, shown := shorten(repr(text), 80), f"{shown} is not a YAML {kind}")


def format_yaml(value: object) -> str:
    """Format plain data as YAML, in the order of its keys."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = _LINE_WIDTH
    stream = io.StringIO()
    yaml.dump(value, stream)
    return stream.getvalue()


def _load(text: str, where: str, wrong: str) -> Any:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        value = yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"{wrong}: {line}{error.problem or error.context}") from None
    except RecursionError:
        raise InputError(f"{wrong}: it is nested too deeply") from None
    # The reader's own errors have no mark, and a tag such as !!bool fails in Python's way: KeyError, ValueError.
    except Exception as error:
        raise InputError(f"{wrong}: {' '.join(str(error).split())}") from None
    validate_plain_data(value, where, max_values=_MAX_VALUES)
    return value
