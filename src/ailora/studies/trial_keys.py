"""Keys that identify trials in a storage: hashes of run configurations and library versions."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ailora.checkpoints.request import flatten
from ailora.library_versions import library_versions
from ailora.studies.study_config import StudyConfig
from ailora.studies.trial import Condition, Trial, TrialSpec

# For type annotations only: `ailora study status` must not import the packages for validating configurations.
if TYPE_CHECKING:
    from ailora.recipes.config.schema import RunConfig

#: Maximum length of a stored text: a column of MySQL holds 65,535 bytes.
_MAX_STORED_CHARS = 60_000
#: Maximum size of the stored JSON after decompression. zlib compresses at most by a factor of 1,032, so a text from
#: `to_text` is never larger.
_MAX_JSON_BYTES = 2**26
_NO_CONDITION = Condition("", "")


class TrialKeys:
    """Keys of a study's trials, computed with the installed library versions.

    Args:
        identities: Condition -> plain data of its run configuration, from `trial_identity`.
        seeds: Seeds of the study; trials with other seeds, such as seeds removed from the study file, do not match.
            None for any seed.

    Attributes:
        conditions: Conditions of the study, in the order of the study.
        identities: Condition -> plain data of its run configuration.
    """

    def __init__(self, identities: Mapping[Condition, dict[str, Any]], *, seeds: Collection[int] | None = None) -> None:
        self.conditions = list(identities)
        self._seeds = None if seeds is None else frozenset(seeds)
        self.identities = identities
        self._versions = library_versions()
        self._keys: dict[TrialSpec, str] = {}
        #: Specification without its condition -> key -> conditions.
        self._conditions_by_key: dict[TrialSpec, dict[str, list[Condition]]] = {}

    def key(self, spec: TrialSpec) -> str:
        """Hash a trial's configuration without its output folder, together with the library versions."""
        if spec not in self._keys:
            identity = self.identities[spec.condition]
            # The trials of a condition differ in few arguments: `model_dump` of 10,000 configurations would be slow.
            training = {**identity["training"], **spec.training_arguments}
            # Appended only if set, so that full runs keep the keys in existing databases.
            until = [] if spec.until_step is None else [spec.until_step]
            content = json.dumps(
                [identity | {"training": training}, self._versions, *until], sort_keys=True, default=str
            )
            # 80 bits identify a trial, and are short enough to name its folder.
            self._keys[spec] = hashlib.sha256(content.encode()).hexdigest()[:20]
        return self._keys[spec]

    def matching_specs(self, key: str, stored: TrialSpec) -> list[TrialSpec]:
        """List the specifications of the study to which a stored trial belongs.

        The key decides, because a storage has a single trial for each key. A trial of other library versions has a
        different key, and is not part of the study. The stored condition is outdated if the study file has renamed a
        method or a task, or has changed the keys of the grid. A trial belongs to several conditions if these have equal
        configurations.

        Args:
            key: Key of the trial.
            stored: Specification in the storage.

        Returns:
            The stored specification with each of these conditions; empty if the trial is not part of the study.
        """
        if self._seeds is not None and stored.seed not in self._seeds:
            return []
        if stored.condition in self._equal_conditions and self.key(stored) == key:
            conditions = self._equal_conditions[stored.condition]
        else:
            conditions = self._find_conditions(stored).get(key, [])
        return [replace(stored, condition=condition) for condition in conditions]

    def matching_trials(self, trials: Iterable[Trial]) -> list[Trial]:
        """Select the trials of the study; trials of other library versions are left out.

        Args:
            trials: Trials of the storage.

        Returns:
            The trials with the specifications of `matching_specs`: a trial for each condition to which it belongs.
        """
        return [replace(trial, spec=spec) for trial in trials for spec in self.matching_specs(trial.key, trial.spec)]

    @functools.cached_property
    def _equal_conditions(self) -> dict[Condition, list[Condition]]:
        """Condition -> conditions with an equal configuration, itself included."""
        groups: dict[str, list[Condition]] = {}
        by_condition: dict[Condition, list[Condition]] = {}
        for condition, identity in self.identities.items():
            group = groups.setdefault(json.dumps(identity, sort_keys=True, default=str), [])
            group.append(condition)
            by_condition[condition] = group
        return by_condition

    def _find_conditions(self, spec: TrialSpec) -> dict[str, list[Condition]]:
        """Compute the key of a specification for each condition: key -> conditions with this key."""
        without_condition = replace(spec, condition=_NO_CONDITION)
        if without_condition not in self._conditions_by_key:
            by_key: dict[str, list[Condition]] = {}
            for condition in self.conditions:
                by_key.setdefault(self.key(replace(spec, condition=condition)), []).append(condition)
            self._conditions_by_key[without_condition] = by_key
        return self._conditions_by_key[without_condition]

    def with_paths_of(self, recorded: Mapping[Condition, dict[str, Any]]) -> TrialKeys:
        """Return keys with the identities of the last `study run`, for conditions that differ in paths only.

        Args:
            recorded: Condition -> plain data of its run configuration, from `read_identities`.

        Returns:
            Keys that match the trials in the storage even if the paths have changed since.
        """
        identities = dict(self.identities)
        for condition in identities.keys() & recorded.keys():
            differences = _find_differences(identities[condition], recorded[condition])
            if all(map(_has_absolute_path, differences.values())):
                identities[condition] = recorded[condition]
        return TrialKeys(identities, seeds=self._seeds)

    def to_text(self, config: StudyConfig) -> str | None:
        """Format the keys for the storage; reading them needs no packages for validating configurations.

        Args:
            config: The study file of these keys.

        Returns:
            Compressed JSON, or None if the text is too long or if JSON cannot represent the data exactly.
        """
        entries = [[c.task, c.method, c.values, identity] for c, identity in self.identities.items()]
        data = [_fingerprint(config), entries]
        content = json.dumps(data, sort_keys=True, default=str)
        # JSON converts keys such as numbers to strings. These sort in a different order, and the hashes would change.
        unchanged = json.dumps(json.loads(content), sort_keys=True) == content
        text = base64.b64encode(zlib.compress(content.encode())).decode()
        return text if unchanged and len(text) <= _MAX_STORED_CHARS else None

    @classmethod
    def from_text(cls, text: object, config: StudyConfig) -> TrialKeys | None:
        """Read keys from a storage.

        Args:
            text: Text from `to_text`; the database is not trusted.
            config: The current study file.

        Returns:
            The keys, or None if the text is damaged, or if the study file, library versions or folders have changed.
        """
        fingerprint, identities = _parse(text)
        fits = identities and fingerprint == _fingerprint(config)
        return cls(identities, seeds=config.all_seeds) if fits else None


def trial_identity(config: RunConfig) -> dict[str, Any]:
    """Convert a configuration to the plain data from which trial keys are hashed.

    Databases contain the keys. If the plain data of a configuration changed, its finished trials would run again.
    Therefore a field removed from the configuration stays here with its default, and a new field is left out at its
    default.
    """
    # The output folder does not influence the result of a run.
    identity = config.model_copy(update={"output": ""}).model_dump()
    # A removed field.
    if "rank" in identity["adapter"]:
        identity["adapter"]["layer_replication"] = None
    # A new field.
    if identity["on_nonfinite"] == "stop":
        del identity["on_nonfinite"]
    return identity


def read_identities(text: object) -> dict[Condition, dict[str, Any]]:
    """Read the plain data of the run configurations, whatever the study file, library versions and folders are now.

    Args:
        text: Text from `TrialKeys.to_text`; the database is not trusted.

    Returns:
        Condition -> plain data of its run configuration; empty if the text is missing or damaged.
    """
    return _parse(text)[1]


def find_moved_paths(identity: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, tuple[object, object]]:
    """Find the paths that differ between two identities.

    Args:
        identity: Plain data of a run configuration.
        recorded: Plain data of the same configuration in the storage.

    Returns:
        Dotted key -> value in the storage and present value. At least one of them is an absolute path, or a list with
        an absolute path. The other may be the name of a model, or the text of a chat template.
    """
    return {name: pair for name, pair in _find_differences(identity, recorded).items() if _has_absolute_path(pair)}


def is_same_identity(identity: Mapping[str, Any], recorded: Mapping[str, Any]) -> bool:
    """Return whether an identity equals an identity from `read_identities`."""
    return not _find_differences(identity, recorded)


def _find_differences(identity: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, tuple[object, object]]:
    """Return dotted key -> stored and present value, for all keys whose values differ."""
    # The storage holds lists instead of tuples, and strings instead of other objects.
    present = flatten(json.loads(json.dumps(identity, default=str)))
    stored = flatten(recorded)
    pairs = {name: (stored.get(name), present.get(name)) for name in stored.keys() | present.keys()}
    return {name: pair for name, pair in sorted(pairs.items()) if pair[0] != pair[1]}


def _has_absolute_path(pair: tuple[object, object]) -> bool:
    values = [item for value in pair for item in (value if isinstance(value, list) else [value])]
    return any(isinstance(value, str) and os.path.isabs(value) for value in values)


def _parse(text: object) -> tuple[object, dict[Condition, dict[str, Any]]]:
    """Return the fingerprint and the identities of a text from `TrialKeys.to_text`; no identities if it is damaged."""
    if not isinstance(text, str):
        return None, {}
    try:
        content = zlib.decompressobj().decompress(base64.b64decode(text), _MAX_JSON_BYTES)
        fingerprint, entries = json.loads(content)
        identities = {Condition.from_values(*fields): identity for *fields, identity in entries}
        return (fingerprint, identities) if all(map(_is_identity, identities.values())) else (None, {})
    except (ValueError, TypeError, AttributeError, RecursionError, zlib.error):
        return None, {}


def _is_identity(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("training"), dict)


def _fingerprint(config: StudyConfig) -> str:
    """Hash all inputs of the identities: study file, library versions, working folder and home folder."""
    content = [config.model_dump(by_alias=True), library_versions(), os.getcwd(), str(Path.home())]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
