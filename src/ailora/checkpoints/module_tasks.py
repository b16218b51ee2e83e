"""The work of `init`, module by module: read a weight, decompose it, keep the factors of the file as a piece."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ailora.atomic_io import write_bytes
from ailora.errors import InputError
from ailora.inits import Factors, Spectral
from ailora.lora.initial_factors import InitialFactors
from ailora.lora.set_factors import build_factors
from ailora.plan.adapter_plan import Plan, PlannedAdapter
from ailora.safetensors_io import StoredTensor, read_header, read_tensor
from ailora.spectral import Band, flops, without_cache
from ailora.weights.base_weight import digest, select_rows, validate_matrix


@dataclass(frozen=True)
class Job:
    """One module: everything that decides its factors.

    Attributes:
        number: its place in the plan.
        stored: its weight in the checkpoint.
        transposed: whether the weight is stored as (in, out).
        adapters: what is planned for it.
        plan: the plan without its adapters.
        seed: of the random starts.
        device: where it is decomposed.
        cached: whether decompositions are kept.
        parts: the folder of the parts.
    """

    number: int
    stored: StoredTensor
    transposed: bool
    adapters: tuple[PlannedAdapter, ...]
    plan: Plan
    seed: int
    device: str
    cached: bool
    parts: Path

    @property
    def module(self) -> str:
        """The module's name."""
        return self.adapters[0].projection.module

    @property
    def piece(self) -> Path:
        """The file of its factors."""
        return self.parts / f"{self.number:06d}.safetensors"

    def finished(self) -> bool:
        """Whether an earlier run has made the piece; one that cannot be read, or is another module's, is made again."""
        try:
            return read_header(self.piece).metadata.get("module") == self.module
        except InputError:
            return False

    @property
    def flops(self) -> float:
        """What its decompositions cost."""
        return sum(flops.flops(*what, dtype=self._dtype) for what in self._bands)

    def seconds(self, speed: float) -> float:
        """What its decompositions take, at a speed of `flops.matmul_speed`."""
        return sum(flops.seconds(*what, dtype=self._dtype, speed=speed) for what in self._bands)

    @property
    def _bands(self) -> list[tuple[tuple[int, int], int, Band]]:
        return [
            ((a.projection.out_features, a.projection.in_features), a.rank, a.init.band)
            for a in self.adapters
            if isinstance(a.init, Spectral)
        ]

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.stored.torch_dtype, torch.float32)


@dataclass(frozen=True)
class Piece:
    """What a job made.

    Attributes:
        module: whose they are.
        tensors: the tensors of the file, by the end of their names: `lora_A.weight`, `lora_B.weight`, and
            `lora_magnitude_vector` of a DoRA.
        fingerprint: of the weight as it is stored (`adapters.weights.fingerprint`).
        floored: by projection, how many directions got a size in place of a negligible singular value.
    """

    module: str
    tensors: dict[str, Tensor]
    fingerprint: str
    floored: dict[str, int]

    def write(self, file: Path) -> None:
        """Write the piece, whole or not at all."""
        metadata = {"module": self.module, "fingerprint": self.fingerprint, "floored": json.dumps(self.floored)}
        write_bytes(file, save({name: tensor.contiguous() for name, tensor in self.tensors.items()}, metadata))


@dataclass(frozen=True)
class Timing:
    """Where the time of a job went, in seconds that its decomposition had to wait or took."""

    read: float
    decompose: float
    write: float


@dataclass(frozen=True)
class _Loaded:
    """The weight (out, in) of a job, and the fingerprint of what is stored."""

    weight: Tensor
    fingerprint: str


def run(job: Job) -> Timing:
    """Make the piece of a job.

    Raises:
        ModelError: the weight is of another shape than planned, or not finite.
    """
    ((_, timing),) = run_in_turn([job])
    return timing


def run_in_turn(jobs: Sequence[Job]) -> Iterator[tuple[Job, Timing]]:
    """Make the pieces of jobs: while a weight is decomposed, a thread reads the next one and writes the last piece.

    Raises:
        ModelError: as `run`.
    """
    with ThreadPoolExecutor(1) as aside:
        following = aside.submit(_load, jobs[0]) if jobs else None
        written: Future[None] | None = None
        for number, job in enumerate(jobs):
            assert following is not None
            started = time.perf_counter()
            loaded = following.result()
            read = time.perf_counter()
            following = aside.submit(_load, jobs[number + 1]) if number + 1 < len(jobs) else None
            piece = _decompose(job, loaded)
            decomposed = time.perf_counter()
            if written is not None:
                written.result()
            written = aside.submit(piece.write, job.piece)
            if following is None:
                written.result()
            yield job, Timing(read - started, decomposed - read, time.perf_counter() - decomposed)


def _load(job: Job) -> _Loaded:
    raw = read_tensor(job.stored)
    return _Loaded(_matrix(raw, job), digest(raw))


def _decompose(job: Job, loaded: _Loaded) -> Piece:
    weight = loaded.weight.to(job.device)
    with nullcontext() if job.cached else without_cache():
        starts = [_start(job, planned, weight) for planned in job.adapters]
    floored = {s.planned.projection.name: int(s.factors.floored) for s in starts if s.factors.floored}
    return Piece(job.module, _tensors(job, starts, weight), loaded.fingerprint, floored)


def _matrix(raw: Tensor, job: Job) -> Tensor:
    weight = raw.T if job.transposed else raw
    validate_matrix(weight, job.adapters[0].projection.shape, str(job.stored))
    return weight


def _start(job: Job, planned: PlannedAdapter, weight: Tensor) -> InitialFactors:
    generator = torch.Generator().manual_seed(seed_of(job.seed, planned.projection.name))
    rows = select_rows(weight, planned.projection)
    made = planned.init.factors(rows, planned.rank, scaling=planned.scaling, generator=generator)
    return InitialFactors(planned, Factors(made.A.cpu(), made.B.cpu(), made.floored.cpu()))


def seed_of(seed: int, name: str) -> int:
    """A seed of its own for everything that is drawn, so that the order of the work does not matter."""
    return int.from_bytes(sha256(f"{seed} {name}".encode()).digest()[:8], "little") >> 1


@torch.no_grad()
def _tensors(job: Job, starts: list[InitialFactors], weight: Tensor) -> dict[str, Tensor]:
    A, B = build_factors(starts, job.plan)
    tensors = {"lora_A.weight": A.stack(), "lora_B.weight": B.stack()}
    if job.plan.options.dora:
        tensors["lora_magnitude_vector"] = weight.to(A.stack().dtype).norm(dim=1).cpu()
    return tensors
