"""Settings of many runs: what is the same in all of them once, then what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ailora.formatting import format_value
from ailora.recipes.config.yaml_file import format_yaml
from ailora.report.document import Block, Code, Table


def settings(configs: Mapping[tuple[str, ...], Mapping[str, Any]], labels: tuple[str, ...]) -> list[Block]:
    """What all runs share, as YAML, and a table of the rest.

    Args:
        configs: the labels of a run -> its configuration, plain data.
        labels: what the labels are.
    """
    flat = {name: flattened(config) for name, config in configs.items()}
    keys = list(dict.fromkeys(key for one in flat.values() for key in one))
    differing = [key for key in keys if len({format_value(one.get(key)) for one in flat.values()}) > 1]
    blocks: list[Block] = []
    if differing:
        rows = tuple((*name, *(format_value(one.get(key), key) for key in differing)) for name, one in flat.items())
        blocks.append(Table("What differs", (*labels, *differing), rows))
    if shared := _shared(list(configs.values())):
        several = len(configs) > 1
        title = "What all have in common" if several else "Configuration"
        blocks.append(Code(title, format_yaml(shared), collapsed=several))
    return blocks


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _shared(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The keys that all have with the same value, section by section."""
    made: dict[str, Any] = {}
    for key, value in configs[0].items() if configs else ():
        others = [config.get(key) for config in configs[1:]]
        if all(other == value for other in others):
            made[key] = value
        elif isinstance(value, Mapping) and all(isinstance(other, Mapping) for other in others):
            made |= {key: below} if (below := _shared([config[key] for config in configs])) else {}
    return made
