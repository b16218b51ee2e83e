"""Decompositions kept on disk: a weight that was decomposed once is not decomposed again by the next run.

Entries are addressed by content (the weight's bytes, shape, dtype, band, rank step and the methods' version), so that a
changed weight never meets an old entry. Weights are decomposed at a few fixed rank steps and cut to the rank that was
asked for: the result does not depend on what the cache held before, nor on whether there is one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ailora.atomic_io import write_bytes
from ailora.errors import InputError
from ailora.spectral.singular_triplets import Band, Certificate, Triplets
from ailora.spectral.truncated_svd import parse_band, truncated_svd

#: Raised whenever a method's results change: older entries are then never read again, and fade away.
_VERSION = 1
_RANK_STEPS = (16, 64, 256)
#: Below this size of the smaller side, decomposing costs about as much as reading.
_LEAST_SIDE = 512

_ENTRY_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")

_enabled: ContextVar[bool] = ContextVar("spectral_cache_enabled", default=True)


def cached_svd(weight: Float[Tensor, "*batch out in_"], rank: int, band: Band | str) -> Triplets:
    """`truncated_svd`, served from the cache where it can be.

    Args:
        weight: as `truncated_svd`; batches are decomposed without the cache.
        rank: as `truncated_svd`.
        band: as `truncated_svd`.

    Raises:
        InputError: as `truncated_svd`.
    """
    band, small = parse_band(band), min(weight.shape[-2:])
    if not 1 <= rank <= small:
        return truncated_svd(weight, rank, band)  # refuses it
    step = next((step for step in _RANK_STEPS if rank <= step <= small), small)
    if weight.ndim > 2 or small < _LEAST_SIDE or not _enabled.get():
        return _cut(truncated_svd(weight, step, band), rank, band)
    cache = SpectralCache()
    key = _key(weight, step, band)
    found = cache.read(key)
    if found is None:
        found = truncated_svd(weight, step, band)
        cache.write(key, found)
    return _cut(found.to(weight.device), rank, band)


@contextmanager
def without_cache() -> Iterator[None]:
    """Neither read nor write the cache in the body."""
    token = _enabled.set(False)
    try:
        yield
    finally:
        _enabled.reset(token)


def _default_folder() -> Path:
    if folder := os.environ.get("AILORA_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ailora" / "spectral"


@dataclass(frozen=True)
class SpectralCache:
    """The folder of entries, one safetensors file each. Safe to share between processes.

    Attributes:
        folder: `AILORA_CACHE`, or `ailora/spectral` in `XDG_CACHE_HOME` (`~/.cache`).
        limit: bytes; when a write goes beyond, the entries that were used longest ago are removed.
    """

    folder: Path = field(default_factory=_default_folder)
    limit: int = 2 * 2**30

    def read(self, key: str) -> Triplets | None:
        """An entry on the CPU; None where there is none. A damaged one is removed."""
        file = self._file(key)
        try:
            with safe_open(file, framework="pt") as entry:
                metadata = entry.metadata() or {}
                tensors = {name: entry.get_tensor(name) for name in ("U", "S", "Vh")}
            if _checksum(tensors) != metadata["checksum"]:
                raise ValueError("checksum")
            certificate = Certificate(**json.loads(metadata["certificate"]))
        except OSError:
            return None
        except (SafetensorError, KeyError, TypeError, ValueError):
            with suppress(OSError):
                file.unlink(missing_ok=True)
            return None
        with suppress(OSError):
            os.utime(file)
        return Triplets(**tensors, certificate=certificate)

    def write(self, key: str, triplets: Triplets) -> None:
        """Store an entry, whole or not at all. A cache that cannot be written to is no error."""
        assert triplets.certificate is not None
        tensors = {"U": triplets.U, "S": triplets.S, "Vh": triplets.Vh}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {"checksum": _checksum(tensors), "certificate": json.dumps(asdict(triplets.certificate))}
        with suppress(OSError, SafetensorError, InputError):  # the last: another process writes the same entry
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(self._file(key), save(tensors, metadata))
            self._shrink()

    def entries(self) -> list[tuple[Path, int, float]]:
        """File, bytes and time of last use of every entry, longest unused first."""
        found = []
        for file in self.folder.glob("*.safetensors"):
            if _ENTRY_NAME.fullmatch(file.name) is None:
                continue  # not ours: the folder may hold models too
            try:
                status = file.stat()
            except FileNotFoundError:  # another process removed it
                continue
            found.append((file, status.st_size, status.st_mtime))
        return sorted(found, key=lambda entry: entry[2])

    def clear(self) -> int:
        """Remove every entry; how many there were."""
        entries = self.entries()
        leftovers = (file for file in self.folder.glob(".*.ailora-partial") if _ENTRY_NAME.match(file.name[1:]))
        for file in (*(file for file, _, _ in entries), *leftovers):
            file.unlink(missing_ok=True)
        return len(entries)

    def _shrink(self) -> None:
        entries = self.entries()
        total = sum(size for _, size, _ in entries)
        for file, size, _ in entries:
            if total <= self.limit:
                return
            file.unlink(missing_ok=True)
            total -= size

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def _cut(triplets: Triplets, rank: int, band: Band) -> Triplets:
    """The `rank` triplets at the band's end of more of them. Their residuals are among those that were certified."""
    count = triplets.S.shape[-1]
    if rank == count:
        return triplets
    rows = slice(0, rank) if band is Band.PRINCIPAL else slice(count - rank, count)
    certificate = triplets.certificate and replace(triplets.certificate, gap=None)
    return Triplets(
        triplets.U[..., rows].contiguous(), triplets.S[..., rows], triplets.Vh[..., rows, :].contiguous(), certificate
    )


def _key(weight: Tensor, step: int, band: Band) -> str:
    digest = hashlib.sha256(f"{_VERSION} {weight.dtype} {tuple(weight.shape)} {band} {step} ".encode())
    digest.update(_bytes(weight))
    return digest.hexdigest()


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data
