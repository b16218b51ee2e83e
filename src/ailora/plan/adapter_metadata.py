"""`ailora.json`: our metadata of an adapter, beside the stock files that every loader reads."""

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
    """An export: a plain LoRA in place of the factors that were trained.

    Attributes:
        rank: the one rank of all its modules.
        dtype: the dtype of its factors.
        error: Frobenius norm of what it lost of the update, relative to the update.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    rank: int
    dtype: str
    error: float


class AdapterMetadata(pydantic.BaseModel):
    """The schema of `ailora.json`.

    Attributes:
        format_version: raised when the meaning of a field changes.
        plan: `Plan.to_dict`: policy, form, and per module its role, rows, init, rank, alpha and scaling.
        fingerprints: module -> SHA-256 of the base weight that it was made from (`BaseWeight.fingerprint`).
        floored: module -> number of directions whose negligible singular value was clamped to a small one.
        base_model: the base model's name or path, as PEFT records it.
        labels: names of the classes in the order of the head's outputs, where the model has other than numbered ones.
        pad_token_id: the padding token of the model while it trained.
        weights_from: the checkpoint whose weights were decomposed in place of the base model's own.
        quantization_errors: only in files of earlier versions, which quantized residuals: module -> relative error of
            the quantized weight before and after.
        exported: of an export, the rank and the dtype of its file, which has no anchor.
        versions: the libraries that made it.
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
        """Return the metadata of an adapter that this process makes; `model_config` is transformers' of its model."""
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
        """The plan.

        Raises:
            InputError: the data is not that of a plan.
        """
        return Plan.from_dict(self.plan)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all modules' fingerprints: the identity of the adapted base tensors."""
        lines = "\n".join(f"{module} {digest}" for module, digest in sorted(self.fingerprints.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write `folder/ailora.json` atomically."""
        write_json(folder / METADATA_NAME, self.model_dump(mode="json"))

    @classmethod
    def read(cls, file: Path) -> AdapterMetadata:
        """Read and validate an `ailora.json`.

        Raises:
            InputError: the file is none, or of a format that this version does not know.
        """
        try:
            metadata = cls.model_validate(read_json_object(file))
            _ = metadata.parsed_plan  # validates it
        except (InputError, pydantic.ValidationError) as error:
            raise InputError(f"{file}: not an ailora.json of format 1: {error}") from error
        return metadata


def find_metadata(folder: Path | str) -> AdapterMetadata | None:
    """Return the metadata in an adapter's folder, or the nearest above it (a Trainer's checkpoint has none itself)."""
    file = find_metadata_file(folder)
    return None if file is None else AdapterMetadata.read(file)


def find_metadata_file(folder: Path | str) -> Path | None:
    """Return the `ailora.json` of an adapter's folder: in it, or in the nearest folder above that has one."""
    folder = Path(folder).resolve()
    files = (place / METADATA_NAME for place in (folder, *folder.parents))
    return next((file for file in files if file.is_file()), None)
