"""Request for a search: the plain data in the storage from which each worker builds an equal `TuneDesign`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic

from ailora.errors import InputError
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.config.validation import StoredSection, format_validation_error

#: Folder of a search, in the output folder of its run. The name starts with a dot because a run refuses an output
#: folder that holds unrelated files, unless they are hidden.
TUNE_FOLDER = ".tune"

#: Version of the rules for rungs and ranking. Searches of version 1 kept a third of the candidates from rung to rung,
#: and ranked them by the goal on all rungs.
RULES: Literal[2] = 2


class TuneRequest(StoredSection, frozen=True):
    """Request for a search.

    Attributes:
        kind: Distinguishes a search from a study in a storage; a study has no `kind`.
        rules: Version of the rules for rungs and ranking. Other rules require other trials.
        base: Complete configuration of the run, with the section `tune`.
        evaluation_steps: Steps after which a run evaluates, ascending; the last is the final step of the run.
        centers: Center of the range of learning rates for each of `SearchSpace.conditions`; unused if the file sets the
            rates.
        budget_runs: Budget of all trials, as a multiple of the cost of a complete run; None until a budget in time is
            converted.
        overhead_runs: Cost of starting a process, as a multiple of the cost of a complete run.
        centers_origin: Sentences on the origin of the centers.
        suggestion_runs: Cost of `suggest-lr` for the centers, as a multiple of the cost of a complete run.
        suggestion_seconds: Duration of `suggest-lr` for the centers.
        output: Folder of the search.
        storage: An Optuna database URL.
        name: Name of the search in the storage.
        retries: Number of restarts of a trial whose worker died.
        worker_timeout: Seconds without a heartbeat after which a worker counts as dead.
    """

    kind: Literal["tune"] = "tune"
    rules: Literal[2] = RULES
    base: dict[str, Any]
    evaluation_steps: list[int]
    centers: list[float]
    budget_runs: float | None
    overhead_runs: float = 0.0
    centers_origin: str = ""
    suggestion_runs: float = 0.0
    suggestion_seconds: float = 0.0
    output: str
    storage: str
    name: str
    retries: int = 20
    worker_timeout: int = 60

    @property
    def run_output(self) -> Path:
        """Output folder of the tuned run, for the trained model of the best candidate."""
        return Path(self.base["output"])


def plain_config(config: RunConfig) -> dict[str, Any]:
    """Convert a configuration to plain data for `load_config`, including the secrets that `model_dump` leaves out."""
    may_hold_secrets = {"training": config.training, "quantization": config.quantization}
    return config.model_dump() | copy.deepcopy(may_hold_secrets) | {"tune": config.tune.model_dump(by_alias=True)}


def parse_request(plain: Mapping[str, Any]) -> TuneRequest:
    """Parse the plain data of a request.

    Raises:
        InputError: The data belong to a study or to a search by other rules, or are damaged.
    """
    if plain.get("kind") != "tune":
        raise InputError("expected a search of `ailora tune` in the storage, got a study")
    # Searches of version 1 name no version.
    if (rules := plain.get("rules", 1)) != RULES:
        raise InputError(
            f"the search began with other rules for its rungs (version {rules}, now {RULES}): finish it with the "
            "version of ailora that began it, or choose a different output"
        )
    try:
        return TuneRequest.model_validate(dict(plain))
    except pydantic.ValidationError as error:
        raise format_validation_error(error, plain, TuneRequest) from None
