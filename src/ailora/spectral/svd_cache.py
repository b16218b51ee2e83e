"""Cache of decompositions on disk, shared by runs.

The key of an entry is a hash of the weight (bytes, shape and dtype), the band, the rank step and the version of the
methods, so a changed weight has a new key. Each weight is decomposed at one of a few fixed ranks, the rank steps, and
then truncated to the requested rank. Results are therefore the same with and without the cache.
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
from ailora.path_kind import expand_home
from ailora.spectral.singular_triplets import Band, Certificate, Triplets
from ailora.spectral.truncated_svd import parse_band, truncated_svd, validate_decomposable

#: Part of every key. Increase it when the results of a method change; older entries are then unused until evicted.
_ALGORITHM_VERSION = 2
#: Numbers of triplets in an entry. If the requested rank exceeds the last step, the entry has all triplets. A request
#: uses the smallest sufficient step, even if the cache has an entry for a larger step: truncated entries of different
#: steps differ in the last digits, so the initial factors would depend on the content of the cache.
_RANK_STEPS = (16, 64, 256)
#: Smallest side of a cached weight. Decomposing a smaller weight costs about as much as reading an entry.
_MIN_CACHED_SIDE = 512

_ENTRY_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")

_enabled: ContextVar[bool] = ContextVar("spectral_cache_enabled", default=True)


def cached_svd(weight: Float[Tensor, "*batch out in_"], rank: int, band: Band | str) -> Triplets:
    """Compute `truncated_svd`, or read its result from the cache.

    Args:
        weight: Floating-point matrix (out, in), or a batch (..., out, in). Batches bypass the cache.
        rank: Number of triplets, 1 <= rank <= min(out, in).
        band: `principal` (largest singular values) or `minor` (smallest).

    Returns:
        Certified triplets on the weight's device. The certificate's `gap` is None if they were truncated from a larger
        rank step.

    Raises:
        InputError: The band is unknown, the rank is out of range, the weight is not a finite floating-point matrix, or
            no method is accurate enough.
    """
    validate_decomposable(weight)
    band = parse_band(band)
    max_rank = min(weight.shape[-2:])
    if not 1 <= rank <= max_rank:
        return truncated_svd(weight, rank, band)  # raises InputError
    step = next((step for step in _RANK_STEPS if rank <= step <= max_rank), max_rank)
    if weight.ndim > 2 or max_rank < _MIN_CACHED_SIDE or not _enabled.get():
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
    """Disable the cache in a context: `cached_svd` neither reads nor writes entries."""
    token = _enabled.set(False)
    try:
        yield
    finally:
        _enabled.reset(token)


def _default_folder() -> Path:
    if folder := os.environ.get("AILORA_CACHE"):
        return expand_home(folder)
    return expand_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ailora" / "spectral"


@dataclass(frozen=True)
class SpectralCache:
    """Folder with a safetensors file for each entry, safe to share between processes.

    Attributes:
        folder: Path of the folder. The default is the environment variable `AILORA_CACHE`, or `ailora/spectral` in
            `XDG_CACHE_HOME` (`~/.cache` if unset).
        limit_bytes: Largest total size of the entries. A write beyond this size evicts the least recently used ones.
    """

    folder: Path = field(default_factory=_default_folder)
    limit_bytes: int = 2 * 2**30

    def read(self, key: str) -> Triplets | None:
        """Read an entry and update its time of last use. A damaged entry is removed.

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
        except OSError:  # the file is missing or unreadable, but not damaged
            return None
        except (SafetensorError, KeyError, TypeError, ValueError):
            with suppress(OSError):
                file.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # the folder may be read-only
            os.utime(file)
        return Triplets(**tensors, certificate=certificate)

    def write(self, key: str, triplets: Triplets) -> None:
        """Write an entry atomically. Errors are ignored: the cache is optional, and its folder may be read-only."""
        assert triplets.certificate is not None
        tensors = {"U": triplets.U, "S": triplets.S, "Vh": triplets.Vh}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {"checksum": _compute_checksum(tensors), "certificate": json.dumps(asdict(triplets.certificate))}
        # InputError is raised if a second process writes the same entry.
        with suppress(OSError, SafetensorError, InputError):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(self._file(key), save(tensors, metadata))
            self._evict()

    def entries(self) -> list[tuple[Path, int, float]]:
        """List the file, size in bytes and time of last use (seconds) of each entry, least recently used first."""
        entries = []
        for file in self.folder.glob("*.safetensors"):
            if _ENTRY_NAME.fullmatch(file.name) is None:
                continue  # the folder may also contain models
            try:
                status = file.stat()
            except FileNotFoundError:  # a second process evicted the entry
                continue
            entries.append((file, status.st_size, status.st_mtime))
        return sorted(entries, key=lambda entry: entry[2])

    def clear(self) -> int:
        """Remove all entries and the partial files of killed processes.

        Returns:
            Number of removed entries.
        """
        entries = self.entries()
        partial_files = (file for file in self.folder.glob(".*.ailora-partial") if _ENTRY_NAME.match(file.name[1:]))
        for file in (*(file for file, _, _ in entries), *partial_files):
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
    """Return the `rank` triplets with the most extreme values: the first of a principal, the last of a minor band."""
    count = triplets.S.shape[-1]
    if rank == count:
        return triplets
    in_band = slice(0, rank) if band is Band.PRINCIPAL else slice(count - rank, count)
    # The certificate of all triplets also holds for these, except for the gap, which follows the larger band.
    certificate = triplets.certificate and replace(triplets.certificate, gap=None)
    return Triplets(
        triplets.U[..., in_band].contiguous(),
        triplets.S[..., in_band],
        triplets.Vh[..., in_band, :].contiguous(),
        certificate,
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
