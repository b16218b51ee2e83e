"""Cache of decompositions on disk, shared by runs.

The key of an entry is a hash of the weight's bytes, shape and dtype, the band, the rank step and the version of the
methods, so that a changed weight has another key. Weights are decomposed at a few fixed rank steps and truncated to the
requested rank. The result is therefore the same with any earlier content of the cache, and without the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Generator
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

#: Part of every key. Increase when the results of a method change: older entries are then unused and evicted.
_ALGORITHM_VERSION = 1
#: Decomposed ranks. An entry serves the ranks of its step only: a rank-64 result cut to 8 differs from a rank-16 result
#: in the last digits, so that a start would depend on earlier content of the cache.
_RANK_STEPS = (16, 64, 256)
#: Smallest cached side of a weight. Below, decomposing costs about as much as reading.
_MIN_CACHED_SIDE = 512

_ENTRY_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")

_enabled: ContextVar[bool] = ContextVar("spectral_cache_enabled", default=True)


def cached_svd(weight: Float[Tensor, "*batch out in_"], rank: int, band: Band | str) -> Triplets:
    """Compute `truncated_svd` through the cache.

    Args:
        weight: Floating matrix (out, in), or a batch of equal shapes, which is decomposed without the cache.
        rank: Number of triplets, 1 <= rank <= min(out, in).
        band: `principal` (largest singular values) or `minor` (smallest).

    Returns:
        Triplets as `truncated_svd` returns them, on the weight's device. The gap of a truncated entry is unknown.

    Raises:
        InputError: The band is unknown, the rank is out of range, or the weight is no finite floating matrix.
    """
    band, small = parse_band(band), min(weight.shape[-2:])
    if not 1 <= rank <= small:
        return truncated_svd(weight, rank, band)  # raises the error for the rank
    step = next((step for step in _RANK_STEPS if rank <= step <= small), small)
    if weight.ndim > 2 or small < _MIN_CACHED_SIDE or not _enabled.get():
        return _truncate(truncated_svd(weight, step, band), rank, band)
    cache = SpectralCache()
    key = _compute_key(weight, step, band)
    triplets = cache.read(key)
    if triplets is None:
        triplets = truncated_svd(weight, step, band)
        cache.write(key, triplets)
    return _truncate(triplets.to(weight.device), rank, band)


@contextmanager
def without_cache() -> Generator[None, None, None]:
    """Disable the cache in the body: `cached_svd` neither reads nor writes entries."""
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
    """Folder of entries, a safetensors file each, safe to share between processes.

    Attributes:
        folder: By default `AILORA_CACHE`, or `ailora/spectral` in `XDG_CACHE_HOME` (`~/.cache`).
        limit_bytes: Size beyond which a write evicts the least recently used entries.
    """

    folder: Path = field(default_factory=_default_folder)
    limit_bytes: int = 2 * 2**30

    def read(self, key: str) -> Triplets | None:
        """Read an entry, and mark it as used. A damaged entry is removed.

        Returns:
            Triplets on the CPU, or None if the entry is missing or unreadable.
        """
        file = self._file(key)
        try:
            with safe_open(file, framework="pt") as entry:
                metadata = entry.metadata() or {}
                tensors = {name: entry.get_tensor(name) for name in ("U", "S", "Vh")}
            if _compute_checksum(tensors) != metadata["checksum"]:
                raise ValueError("checksum")
            certificate = Certificate(**json.loads(metadata["certificate"]))
        except OSError:  # missing or unreadable, which is no sign of damage
            return None
        except (SafetensorError, KeyError, TypeError, ValueError):
            with suppress(OSError):
                file.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # of a read-only folder
            os.utime(file)
        return Triplets(**tensors, certificate=certificate)

    def write(self, key: str, triplets: Triplets) -> None:
        """Write an entry atomically. A folder that cannot be written to is silently left alone."""
        assert triplets.certificate is not None
        tensors = {"U": triplets.U, "S": triplets.S, "Vh": triplets.Vh}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {"checksum": _compute_checksum(tensors), "certificate": json.dumps(asdict(triplets.certificate))}
        # InputError: another process writes the same entry.
        with suppress(OSError, SafetensorError, InputError):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(self._file(key), save(tensors, metadata))
            self._evict()

    def entries(self) -> list[tuple[Path, int, float]]:
        """List the file, size in bytes and time of last use (seconds) of every entry, least recently used first."""
        entries = []
        for file in self.folder.glob("*.safetensors"):
            if _ENTRY_NAME.fullmatch(file.name) is None:
                continue  # not ours: the folder may hold models too
            try:
                status = file.stat()
            except FileNotFoundError:  # evicted by another process
                continue
            entries.append((file, status.st_size, status.st_mtime))
        return sorted(entries, key=lambda entry: entry[2])

    def clear(self) -> int:
        """Remove all entries and leftovers of killed processes; return the number of entries."""
        entries = self.entries()
        leftovers = (file for file in self.folder.glob(".*.ailora-partial") if _ENTRY_NAME.match(file.name[1:]))
        for file in (*(file for file, _, _ in entries), *leftovers):
            file.unlink(missing_ok=True)
        return len(entries)

    def _evict(self) -> None:
        entries = self.entries()
        total = sum(size for _, size, _ in entries)
        for file, size, _ in entries:
            if total <= self.limit_bytes:
                return
            file.unlink(missing_ok=True)
            total -= size

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def _truncate(triplets: Triplets, rank: int, band: Band) -> Triplets:
    """Return the `rank` triplets at the band's end. The certificate covers them: it holds the worst residual of all."""
    count = triplets.S.shape[-1]
    if rank == count:
        return triplets
    rows = slice(0, rank) if band is Band.PRINCIPAL else slice(count - rank, count)
    certificate = triplets.certificate and replace(triplets.certificate, gap=None)
    return Triplets(
        triplets.U[..., rows].contiguous(), triplets.S[..., rows], triplets.Vh[..., rows, :].contiguous(), certificate
    )


def _compute_key(weight: Tensor, step: int, band: Band) -> str:
    digest = hashlib.sha256(f"{_ALGORITHM_VERSION} {weight.dtype} {tuple(weight.shape)} {band} {step} ".encode())
    digest.update(_tensor_bytes(weight))
    return digest.hexdigest()


def _compute_checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(_tensor_bytes(tensors[name]))
    return digest.hexdigest()


def _tensor_bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data
