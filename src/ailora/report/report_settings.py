"""Settings of several runs: differing settings as a table, and shared settings as YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ailora.formatting import format_value, is_real
from ailora.recipes.config.yaml_file import format_yaml
from ailora.report.document import Block, Code, ReportTable

#: A configuration as plain data.
Config = Mapping[str, object]


def settings_blocks(configs: Mapping[tuple[str, ...], Config], labels: tuple[str, ...]) -> list[Block]:
    """Build the blocks of the settings of runs.

    Args:
        configs: Labels of a run -> its configuration.
        labels: Column names of the labels.

    Returns:
        A table of the differing settings if there are any, and the shared settings as YAML.
    """
    flat = {run: flatten_keys(config) for run, config in configs.items()}
    keys = dict.fromkeys(key for config in flat.values() for key in config)
    columns = {key: _format_setting([config.get(key) for config in flat.values()], key) for key in keys}
    differing = {key: cells for key, cells in columns.items() if len({*cells}) > 1}
    blocks: list[Block] = []
    if differing:
        # Transpose the columns of settings to rows of runs. A run is the tuple of its labels.
        rows = tuple((*run, *cells) for run, *cells in zip(flat, *differing.values(), strict=True))
        blocks.append(ReportTable("What differs", (*labels, *differing), rows))
    if shared := _shared(list(configs.values())):
        several = len(configs) > 1
        title = "What all have in common" if several else "Configuration"
        blocks.append(Code(title, format_yaml(shared), collapsed=several))
    return blocks


def _format_setting(values: Sequence[object], key: str) -> list[str]:
    """Format the values of a setting in all runs, with all digits if fewer digits would hide a difference."""
    numbers = {value for value in values if is_real(value)}
    needs_digits = len({format_value(number, key) for number in numbers}) < len(numbers)
    return [str(value) if needs_digits and is_real(value) else format_value(value, key) for value in values]


def flatten_keys(config: Config, prefix: str = "") -> dict[str, object]:
    """Return dotted keys with their values.

    Args:
        config: A nested configuration; empty mappings in it are values.
        prefix: Prefix of all keys.
    """
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten_keys(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _shared(configs: Sequence[Config]) -> dict[str, object]:
    """Return the settings that are equal in all configurations, section by section."""
    shared: dict[str, object] = {}
    for key, value in configs[0].items() if configs else ():
        values = [config.get(key) for config in configs]
        sections = [value for value in values if isinstance(value, Mapping)]
        if all(other == value for other in values):
            shared[key] = value
        elif len(sections) == len(configs) and (shared_section := _shared(sections)):
            shared[key] = shared_section
    return shared
