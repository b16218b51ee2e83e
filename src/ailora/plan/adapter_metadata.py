"""Metadata of an adapter, `ailora.json`, beside the files that every loader reads."""

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
    """Facts about an export: a plain LoRA instead of the trained factors.

    Attributes:
        rank: Rank of all its modules.
        dtype: Dtype of its factors.
        error: Frobenius norm of the update's change, relative to the update.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    rank: int
    dtype: str
    error: float


class AdapterMetadata(pydantic.BaseModel):
    """The schema of `ailora.json`.

    Attributes:
        format_version: Incremented when the meaning of a field changes.
        plan: `Plan.to_dict`: policy, form, and for each module role, rows, init, rank, alpha and scaling.
        fingerprints: Module -> SHA-256 of the decomposed base weight (`BaseWeight.fingerprint`).
        floored: Module -> number of directions whose negligible singular value was clamped.
        base_model: Name or path of the base model, as PEFT records it.
        labels: Names of the classes in the order of the head's outputs; None for numbered classes.
        pad_token_id: Padding token of the model in training.
        weights_from: Checkpoint whose weights were decomposed instead of the base model's.
        quantization_errors: Only in files of earlier versions, which quantized residuals: module -> relative error of
            the quantized weight before and after.
        exported: Rank, dtype and error of an export, whose file has no anchor; None for other adapters.
        versions: Versions of the libraries that made the adapter.
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
            plan: Its plan.
            fingerprints: Module -> SHA-256 of the decomposed base weight.
            base_model: Name or path of the base model.
            model_config: Configuration of the model in transformers: labels and padding token.
            floored: Module -> number of clamped directions.
            weights_from: Checkpoint whose weights were decomposed instead of the base model's.

        Returns:
            The metadata, with the versions of the installed libraries.
        """
        pad_token_id = getattr(model_config, "pad_token_id", None)
        return cls(
            plan=json.loads(json.dumps(plan.to_dict())),
            fingerprints=fingerprints,
            floored=floored or {},
            base_model=base_model,
            labels=read_labels(model_config, plan.options.task_type),
            pad_token_id=pad_token_id if isinstance(pad_token_id, int) else None,
            weights_from=weights_from,
            versions=library_versions(),
        )

    @cached_property
    def parsed_plan(self) -> Plan:
        """The parsed plan.

        Raises:
            InputError: The data is not a plan.
        """
        return Plan.from_dict(self.plan)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all fingerprints, which identifies the adapted base tensors."""
        lines = "\n".join(f"{module} {digest}" for module, digest in sorted(self.fingerprints.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write `folder/ailora.json` atomically."""
        write_json(folder / METADATA_NAME, self.model_dump(mode="json"))

    @classmethod
    def read(cls, file: Path) -> AdapterMetadata:
        """Read and validate an `ailora.json`.

        Raises:
            InputError: The file is missing, malformed, or of another format.
        """
        try:
            metadata = cls.model_validate(read_json_object(file))
            _ = metadata.parsed_plan  # validates it
        except (InputError, pydantic.ValidationError) as error:
            raise InputError(f"{file}: not an ailora.json of format 1: {error}") from error
        return metadata


def find_metadata(folder: Path | str) -> AdapterMetadata | None:
    """Read the metadata of an adapter's folder, or of the nearest folder above that has some.

    A checkpoint of transformers' Trainer lies below its run and has no `ailora.json` of its own.

    Returns:
        The metadata, or None if no folder has any.
    """
    file = find_metadata_file(folder)
    return None if file is None else AdapterMetadata.read(file)


def find_metadata_file(folder: Path | str) -> Path | None:
    """Return the path of the `ailora.json` in a folder or in the nearest folder above, or None."""
    folder = Path(folder).resolve()
    files = (place / METADATA_NAME for place in (folder, *folder.parents))
    return next((file for file in files if file.is_file()), None)
