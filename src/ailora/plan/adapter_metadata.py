"""`ailora.json`: what made an adapter, beside the stock files that every loader reads."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pydantic

from ailora.atomic_io import write_text
from ailora.errors import InputError
from ailora.plan.adapter_plan import Plan

METADATA_NAME = "ailora.json"
_LIBRARIES = ("ailora", "torch", "peft", "transformers", "safetensors")


class Exported(pydantic.BaseModel):
    """What an export has in place of the factors that were trained.

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
        fingerprints: module -> SHA-256 of the base weight that it was made from (`weights.fingerprint`).
        floored: module -> how many directions of its start got a size in place of a negligible singular value.
        base_model: the base model's name or path, as PEFT records it.
        weights_from: the checkpoint whose weights were decomposed in place of the base model's own.
        quantization_errors: module -> relative error of its quantized weight before and after the residual was
            quantized.
        exported: of an export, the rank and the dtype of its file, which has no anchor.
        versions: the libraries that made it.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    plan: dict[str, Any]
    fingerprints: dict[str, str]
    floored: dict[str, int] = {}
    base_model: str | None
    weights_from: str | None = None
    quantization_errors: dict[str, tuple[float, float]] = {}
    exported: Exported | None = None
    versions: dict[str, str]

    @classmethod
    def of(cls, plan: Plan, fingerprints: dict[str, str], **facts: Any) -> AdapterMetadata:
        """The sidecar of an adapter that this process makes; `facts` are the other fields."""
        data = json.loads(json.dumps(plan.to_dict()))
        return cls(plan=data, fingerprints=fingerprints, versions=library_versions(), **facts)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all modules' fingerprints: the identity of the adapted base tensors."""
        lines = "\n".join(f"{module} {digest}" for module, digest in sorted(self.fingerprints.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write `folder/ailora.json`, all of it or nothing."""
        write_text(folder / METADATA_NAME, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, file: Path) -> AdapterMetadata:
        """Read a sidecar.

        Raises:
            InputError: the file is not a sidecar, or one of a format that this version does not know.
        """
        try:
            sidecar = cls.model_validate_json(file.read_bytes())
        except (OSError, pydantic.ValidationError) as error:
            raise InputError(f"{file}: not an ailora.json of format 1: {error}") from error
        Plan.from_dict(sidecar.plan)
        return sidecar


def find_metadata(folder: Path | str) -> AdapterMetadata | None:
    """The sidecar in an adapter's folder, or the nearest one above it (a Trainer's checkpoint has none of its own)."""
    file = find_metadata_file(folder)
    return None if file is None else AdapterMetadata.read(file)


def find_metadata_file(folder: Path | str) -> Path | None:
    """Where the sidecar of an adapter's folder is: in it, or in the nearest folder above that has one."""
    folder = Path(folder).resolve()
    files = (place / METADATA_NAME for place in (folder, *folder.parents))
    return next((file for file in files if file.is_file()), None)


def library_versions() -> dict[str, str]:
    """The versions of the libraries that decide what an adapter is."""
    return {name: version(name) for name in _LIBRARIES}
