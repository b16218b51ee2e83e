"""Metadata of an adapter: the schema of `ailora.json`, which is saved beside PEFT's files."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pydantic

from ailora.atomic_io import write_json
from ailora.errors import InputError
from ailora.library_versions import library_versions
from ailora.plain_data import read_json_object
from ailora.plan.adapter_plan import Plan
from ailora.plan.task_type import read_labels

METADATA_NAME = "ailora.json"


class Exported(pydantic.BaseModel):
    """Properties of an export, the plain LoRA written by `ailora export` in place of a trained adapter.

    Attributes:
        rank: Rank in every module.
        dtype: Dtype of the factors.
        error: Frobenius norm of the exported minus the trained update, relative to the norm of the trained update.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    rank: int
    dtype: str
    error: float


class AdapterMetadata(pydantic.BaseModel):
    """Schema of `ailora.json`.

    Attributes:
        format_version: Incremented when the meaning of a field changes.
        plan: Result of `Plan.to_dict`.
        fingerprints: Module -> SHA-256 of the decomposed base weight (`BaseWeight.fingerprint`).
        floored: `Projection.name` -> number of clamped singular values (`Factors.floored`).
        base_model: Name or path of the base model, as PEFT records it.
        labels: Class names in the order of the head's outputs. None for numbered classes.
        pad_token_id: Id of the model's padding token. None for models without one.
        weights_from: Unquantized checkpoint whose weights were decomposed. None if the base model's weights were.
        quantization_errors: Module -> relative error of the quantized weight before and after its residual was
            quantized. Only earlier versions, which quantized residuals, wrote this field.
        exported: Properties of the export. None if the adapter is not an export.
        versions: Library -> version at the time of writing.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    plan: dict[str, Any]
    fingerprints: dict[str, str]
    floored: dict[str, int] = {}
    base_model: str | None
    labels: tuple[str, ...] | None = None
    pad_token_id: int | None = None
    weights_from: str | None = None
    quantization_errors: dict[str, tuple[float, float]] = {}
    exported: Exported | None = None
    versions: dict[str, str]

    @classmethod
    def from_plan(
        cls,
        plan: Plan,
        fingerprints: dict[str, str],
        *,
        base_model: str | None,
        model_config: object = None,
        floored: dict[str, int] | None = None,
        weights_from: str | None = None,
    ) -> AdapterMetadata:
        """Build the metadata of a new adapter.

        Args:
            plan: Plan of the adapter.
            fingerprints: Module -> SHA-256 of the decomposed base weight.
            base_model: Name or path of the base model.
            model_config: The model's configuration in transformers. Labels and padding token are read from it.
            floored: `Projection.name` -> number of clamped singular values.
            weights_from: Unquantized checkpoint whose weights were decomposed. None if the base model's weights were.

        Returns:
            Metadata with the versions of the installed libraries.
        """
        metadata = cls(
            # The round trip through JSON turns tuples into lists, so new metadata equal metadata read from a file.
            plan=json.loads(json.dumps(plan.to_dict())),
            fingerprints=fingerprints,
            floored=floored or {},
            base_model=base_model,
            weights_from=weights_from,
            versions=library_versions(),
        )
        return metadata.with_model_config(model_config)

    def with_model_config(self, model_config: object) -> AdapterMetadata:
        """Return a copy with missing labels and padding token read from a model's configuration in transformers.

        Existing values are kept, because the configuration of a base model with several adapters, or with a resumed
        adapter, may hold the labels of a different adapter.
        """
        pad_token_id = getattr(model_config, "pad_token_id", None)
        values = {
            "labels": read_labels(model_config, self.parsed_plan.options.task_type),
            "pad_token_id": pad_token_id if isinstance(pad_token_id, int) else None,
        }
        return self.model_copy(update={key: value for key, value in values.items() if getattr(self, key) is None})

    @cached_property
    def parsed_plan(self) -> Plan:
        """Plan parsed from the field `plan`.

        Raises:
            InputError: The field does not contain a valid plan.
        """
        return Plan.from_dict(self.plan)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all module names and fingerprints, to identify the adapted base weights."""
        lines = "\n".join(f"{module} {digest}" for module, digest in sorted(self.fingerprints.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write `folder/ailora.json` atomically."""
        write_json(folder / METADATA_NAME, self.model_dump(mode="json"))

    @classmethod
    def read(cls, file: Path) -> AdapterMetadata:
        """Read and validate an `ailora.json`.

        Raises:
            InputError: The file is missing or malformed, or its format version is unknown.
        """
        try:
            metadata = cls.model_validate(read_json_object(file))
            _ = metadata.parsed_plan  # raises if the plan is invalid
        except InputError as error:
            raise InputError(f"{file}: not an ailora.json of format 1: {error}") from error
        except pydantic.ValidationError as error:
            # pydantic's own message has several lines and a link.
            reasons = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:3])
            raise InputError(f"{file}: not an ailora.json of format 1: {'; '.join(reasons)}") from error
        return metadata


def find_metadata(folder: Path | str) -> AdapterMetadata | None:
    """Read the `ailora.json` in a folder, or in its nearest parent with such a file.

    Parents are searched, because a run writes `ailora.json` once, in the folder above the Trainer's checkpoints.

    Returns:
        Metadata, or None if there is no `ailora.json`.
    """
    file = find_metadata_file(folder)
    return None if file is None else AdapterMetadata.read(file)


def find_metadata_file(folder: Path | str) -> Path | None:
    """Return the path of the `ailora.json` in a folder or in its nearest parent with such a file, or None."""
    # A relative path has no parents outside the current folder.
    folder = Path(folder).resolve()
    files = (parent / METADATA_NAME for parent in (folder, *folder.parents))
    return next((file for file in files if file.is_file()), None)
