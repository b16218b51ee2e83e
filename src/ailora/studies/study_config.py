"""Schema of study files: methods, tasks, learning rates, seeds and the storage."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from ailora.checkpoints.output_path import resolve_output_path
from ailora.errors import InputError, unknown_name
from ailora.recipes.config.overrides import apply_override
from ailora.recipes.config.validation import (
    Count,
    Section,
    StoredSection,
    Text,
    field,
    format_validation_error,
    short_repr,
)
from ailora.recipes.config.yaml_file import read_yaml
from ailora.redaction import is_secret
from ailora.studies.storage_url import sqlite_url

Rate = Annotated[float, pydantic.Field(strict=True, gt=0, allow_inf_nan=False)]
Seed = Annotated[int, pydantic.Field(strict=True, ge=0, lt=2**32)]
#: A percentage, such as `1%`.
Share = Annotated[str, pydantic.Field(strict=True, pattern=r"^\d+(\.\d+)? ?%$")]
#: Limits for a method's initial rates and a range's decades. They catch slips such as a wrong exponent.
_MAX_RATES = 1_000
_MAX_DECADES = 100
#: Expected values of keys, for messages.
_EXPECTED_MARGIN = "a number above 0, or a share of the baseline's score such as 1%"
_EXPECTED_SEEDS = "a list of whole numbers of at least 0, or a mapping such as {from: 3, until: decided, to: 20}"
_EXPECTED_RATES = "a mapping: values, or from, to and per_decade"


class RateConfig(Section, frozen=True, populate_by_name=True):
    """Value of `learning_rate:`: exact rates, or a geometric range, extended while the best rate is at an end.

    Attributes:
        values: Exact rates.
        from_, to: Ends of the range.
        per_decade: Number of rates per factor of ten; default: 2.
    """

    values: list[Rate] | None = field("a list of numbers above 0", None, min_length=1)
    from_: Rate | None = field("a number above 0", None, alias="from")
    to: Rate | None = field("a number above 0", None)
    per_decade: Count = field("a whole number of at least 1", 2)

    @pydantic.model_serializer(mode="wrap")
    def _serialize(self, _handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, object]:
        if self.values is not None:
            return {"values": self.values}
        return {"from": self.from_, "to": self.to, "per_decade": self.per_decade}

    @property
    def decades(self) -> float:
        """Factors of ten from the smallest to the largest rate of a range."""
        return math.log10(self.to) - math.log10(self.from_) if self.from_ and self.to else 0.0

    def validate_keys(self, where: str) -> None:
        """Validate the combination of keys, and the number of rates.

        Args:
            where: Key of the rates, for messages.

        Raises:
            InputError: Values and a range are both given or both missing, the range is reversed or too wide, a rate is
                a duplicate, or there are too many rates.
        """
        given = self.model_fields_set
        if self.values is not None:
            if given != {"values"}:
                raise InputError(f"{where}: give values, or from, to and per_decade, not both")
            if len(set(self.values)) < len(self.values):
                raise InputError(f"{where}.values: duplicate rate")
        elif self.from_ is None or self.to is None:
            raise InputError(f"{where} needs values, or from and to")
        elif self.from_ > self.to:
            raise InputError(f"{where}: from {self.from_:g} is more than to {self.to:g}")
        elif self.decades > _MAX_DECADES:
            raise InputError(f"{where}: from {self.from_:g} to {self.to:g} are more than {_MAX_DECADES} decades")
        # `per_decade` has a limit of its own: a narrow range has few rates, but may be extended by decades.
        n_rates = len(self.values) if self.values is not None else self.decades * self.per_decade
        if n_rates > _MAX_RATES or self.per_decade > _MAX_RATES:
            raise InputError(
                f"{where}: expected at most {_MAX_RATES} rates of a method, got {max(n_rates, self.per_decade):,.0f}"
            )


class SequentialSeeds(Section, frozen=True, populate_by_name=True):
    """Value of `seeds:` as a mapping: seeds 0, 1, 2, ... run until every comparison is decided.

    Attributes:
        from_: Number of seeds at the first look; these seeds also choose the learning rates; default: 3.
        until: Stopping rule; `decided` is the only value.
        to: Number of seeds at the last look; default: 20.
    """

    from_: Annotated[int, pydantic.Field(strict=True, ge=2)] = field("a whole number of at least 2", 3, alias="from")
    until: Literal["decided"] = field("decided")
    to: Annotated[int, pydantic.Field(strict=True, ge=3)] = field("a whole number above `from`", 20)

    @pydantic.model_serializer
    def _serialize(self) -> dict[str, object]:
        return {"from": self.from_, "until": self.until, "to": self.to}


class StudyConfig(StoredSection, frozen=True):
    """Content of a study file; `docs/studies.md` describes each key.

    Attributes:
        base: Run configuration before changes by tasks, grid and methods: a file beside the study file, or a mapping.
        methods: Names of policies, or `{label: overrides}`. The override `method` names the policy; without it, the
            label is the policy's name.
        tasks: Name -> overrides of the base.
        grid: Dotted key of the base -> its values.
        learning_rate: Rates to try for every method; an override `learning_rate` of a method takes precedence.
        seeds: Seeds that choose the best rate, or a mapping to add seeds until every comparison is decided. The first
            seed runs at every tried rate.
        extra_seeds: Seeds that run only at the best rate.
        seeds_at: Rates for the `seeds` after the first seed: `best` for the best rate and its neighbours, or `all`.
        baseline: Label of the method to compare with; None for the first method.
        metric: Metric to report, and to choose the learning rate on the validation split; None for the recipe's first
            metric.
        margin: Largest difference of equivalent methods, in the metric's unit or as a share such as `1%` of the
            baseline's mean; None for 0.01 if scores are at most 1.
        match_parameters: Whether to scale each method's rank to the baseline's number of trainable parameters.
        confirm_speed: Whether to check with shorter schedules if a method reaches the baseline's final loss earlier.
        pruning: Whether to end runs early if they are worse than the median of their peers at the same evaluation.
        retries: Number of restarts of a trial whose worker died.
        worker_timeout: Number of seconds without a heartbeat after which a worker counts as dead.
        keep: Part of the model to keep after each trial.
        storage: Optuna database URL; None for SQLite in the output folder.
        output: Folder of the study.
        name: Name of the study in the storage; None for the name of the output folder.
    """

    base: Text | dict[str, Any] = field("a file or a mapping: the configuration of a run")
    methods: list[Text | dict[str, dict[str, Any] | None]] = field(
        "a list of names and of mappings from a label to overrides", min_length=1
    )
    tasks: dict[str, dict[str, Any] | None] | None = field("a mapping from a name to overrides", None, min_length=1)
    grid: dict[str, list[Any]] = field("a mapping from dotted keys of the base to lists of values", {})
    learning_rate: RateConfig = field(_EXPECTED_RATES)
    seeds: Annotated[list[Seed], pydantic.Field(min_length=1)] | SequentialSeeds = field(_EXPECTED_SEEDS, [0])
    extra_seeds: list[Seed] = field("a list of whole numbers of at least 0", [])
    seeds_at: Literal["best", "all"] = field("'best' or 'all'", "best")
    baseline: Text | None = field("the label of a method", None)
    metric: Text | None = field("the name of a metric", None)
    margin: Annotated[float, pydantic.Field(strict=True, gt=0, allow_inf_nan=False)] | Share | None = field(
        _EXPECTED_MARGIN, None
    )
    match_parameters: bool = field("true or false", False, strict=True)
    confirm_speed: bool = field("true or false", False, strict=True)
    pruning: bool = field("true or false", False, strict=True)
    retries: Annotated[int, pydantic.Field(strict=True, ge=0)] = field("a whole number of at least 0", 2)
    worker_timeout: Annotated[int, pydantic.Field(strict=True, ge=2)] = field(
        "a whole number of at least 2, in seconds", 60
    )
    keep: Literal["nothing", "adapter", "all"] = field("'nothing', 'adapter' or 'all'", "adapter")
    storage: Text | None = field("an Optuna database URL such as sqlite:///study.db", None)
    output: Text = field("a folder")
    name: Text | None = field("a text", None)

    @property
    def trials_folder(self) -> Path:
        """Folder with the run folder of each trial."""
        return Path(self.output) / "trials"

    @property
    def all_seeds(self) -> list[int]:
        """All seeds of a condition, in the order of their runs."""
        return (
            list(range(self.seeds.to)) if isinstance(self.seeds, SequentialSeeds) else [*self.seeds, *self.extra_seeds]
        )


def load_study_config(
    source: Path | str | Mapping[str, Any], overrides: Sequence[str] = (), *, scale: str | None = None
) -> StudyConfig:
    """Read, complete and validate a study file.

    Args:
        source: YAML file, or its content as a mapping.
        overrides: `dotted.key=value` with a YAML value; a key such as `base.training.seed` changes the base.
        scale: Name of an entry of `scales:`. The keys of the entry replace those of the file.

    Returns:
        The study file with the content of the base, an absolute output folder, a storage and a name.

    Raises:
        InputError: The file is missing or not YAML, or a key, name or value is invalid; the message names the allowed
            values.
    """
    raw = copy.deepcopy(dict(source)) if isinstance(source, Mapping) else read_yaml(Path(source))
    where = "" if isinstance(source, Mapping) else f"{source}: "
    folder = Path() if isinstance(source, Mapping) else Path(source).parent
    if not isinstance(raw, dict):
        raise InputError(f"{where}expected keys such as base, methods, learning_rate; got {short_repr(raw)}")
    try:
        return _load(raw, overrides, scale, folder)
    except InputError as error:
        raise InputError(f"{where}{error}") from None


def _load(raw: dict[str, Any], overrides: Sequence[str], scale: str | None, folder: Path) -> StudyConfig:
    scales = raw.pop("scales", None) or {}
    if not (isinstance(scales, dict) and all(isinstance(changes, dict) for changes in scales.values())):
        raise InputError(f"scales: expected a mapping from a name to keys of the file, got {short_repr(scales)}")
    if scale is not None:
        if scale not in scales:
            raise unknown_name("scale", scale, scales)
        raw |= scales[scale]
    _read_base(raw, folder)
    for override in overrides:
        # `scales` was removed above: without this check, the message would call the key unknown.
        if override.partition("=")[0].split(".")[0] == "scales":
            raise InputError(f"{override!r}: scales cannot be overridden; --scale selects an entry of the file")
        apply_override(raw, override)
        # An override may name a different file for the base.
        _read_base(raw, folder)
    try:
        config = StudyConfig.model_validate(raw)
    except pydantic.ValidationError as error:
        raise format_validation_error(error, raw, StudyConfig) from None
    return _complete(config)


def _read_base(raw: dict[str, Any], folder: Path) -> None:
    """Replace the file name in `base` with the content of the file, in place."""
    if not isinstance(raw.get("base"), str):
        return
    file = folder / raw["base"]
    base = read_yaml(file)
    if not isinstance(base, dict):
        content = "nothing" if base is None else short_repr(base)
        raise InputError(f"base: {file}: expected keys such as recipe, model, data; got {content}")
    raw["base"] = base


def _validate_seeds(config: StudyConfig) -> None:
    """Validate that seeds are unique. For sequential seeds, validate the range, and that there are no extra seeds."""
    if isinstance(config.seeds, SequentialSeeds):
        if config.seeds.from_ >= config.seeds.to:
            raise InputError(f"seeds: to must be above from, got from {config.seeds.from_} to {config.seeds.to}")
        if config.extra_seeds:
            raise InputError("extra_seeds cannot be given with seeds that run until decided, which determine all seeds")
        return
    seeds = [*config.seeds, *config.extra_seeds]
    if repeated := [seed for seed, count in Counter(seeds).items() if count > 1]:
        raise InputError(f"seeds: duplicate seed {repeated[0]}")


def _complete(config: StudyConfig) -> StudyConfig:
    """Validate the combinations of keys, and set the absolute output folder, the storage and the name."""
    config.learning_rate.validate_keys("learning_rate")
    _validate_seeds(config)
    if isinstance(config.margin, str) and not float(config.margin.rstrip(" %")):
        raise InputError(f"margin: expected {_EXPECTED_MARGIN}, got {config.margin!r}")
    for key, values in config.grid.items():
        if is_secret(key):
            raise InputError(f"grid.{key} cannot be varied: its values are secret, and the storage shows settings")
        if not values:
            raise InputError(f"grid.{key} has no values: the grid has no cells")
    output = resolve_output_path(config.output).absolute()
    storage = config.storage or sqlite_url(output / "study.db")
    return config.model_copy(update={"output": str(output), "storage": storage, "name": config.name or output.name})
