"""Tasks of `ailora init`: read a module's weight, compute the initial factors, and write the factors to a file."""

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
from ailora.checkpoints.stored_weight import StoredWeight
from ailora.errors import InputError
from ailora.inits import Factors, Spectral
from ailora.lora.initial_factors import InitialFactors
from ailora.lora.set_factors import build_factors
from ailora.plan.adapter_plan import Plan, PlannedAdapter
from ailora.safetensors_io import read_header, read_tensor
from ailora.spectral import Band, flops, without_cache
from ailora.weights.base_weight import digest, select_rows, validate_dora_rows


@dataclass(frozen=True)
class ModuleTask:
    """Inputs for the initial factors of a module.

    Attributes:
        weight: Stored weight of the module.
        adapters: Planned adapters of the module.
        plan: Plan with options, but without adapters.
        seed: Seed of random inits.
        device: Device of the decompositions.
        cached: Whether to use the cache of decompositions.
        file: File for the factors. The adapter is assembled from these files when all modules are finished.
    """

    weight: StoredWeight
    adapters: tuple[PlannedAdapter, ...]
    plan: Plan
    seed: int
    device: str
    cached: bool
    file: Path

    @property
    def module(self) -> str:
        """Name of the module."""
        return self.weight.module

    def is_finished(self) -> bool:
        """Return whether the file exists, and has a valid header that names the module."""
        try:
            return read_header(self.file).metadata.get("module") == self.module
        except InputError:
            return False

    @property
    def flops(self) -> float:
        """Estimated number of floating-point operations for the decompositions."""
        return sum(flops.estimate_flops(*decomposition, dtype=self._dtype) for decomposition in self._decompositions)

    def estimate_seconds(self, speed: float) -> float:
        """Return the estimated seconds for the decompositions.

        Args:
            speed: Floating-point operations per second, measured by `flops.measure_matmul_speed`.
        """
        return sum(
            flops.estimate_seconds(*decomposition, dtype=self._dtype, speed=speed)
            for decomposition in self._decompositions
        )

    @property
    def _decompositions(self) -> list[tuple[tuple[int, int], int, Band]]:
        """Shape (out, in), rank and band of each decomposition."""
        return [
            ((a.projection.out_features, a.projection.in_features), a.rank, a.init.band)
            for a in self.adapters
            if isinstance(a.init, Spectral)
        ]

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.weight.tensor.torch_dtype, torch.float32)


@dataclass(frozen=True)
class ModuleResult:
    """Factors of a module.

    Attributes:
        module: Name of the module.
        tensors: Tensors by name without the module's name: `lora_A.weight`, `lora_B.weight`, and with DoRA
            `lora_magnitude_vector`.
        fingerprint: Fingerprint of the stored weight.
        floored: Number of directions with a clamped singular value, by projection.
    """

    module: str
    tensors: dict[str, Tensor]
    fingerprint: str
    floored: dict[str, int]

    def write(self, file: Path) -> None:
        """Write the result atomically, with the fingerprint and `floored` in the metadata of the file."""
        metadata = {"module": self.module, "fingerprint": self.fingerprint, "floored": json.dumps(self.floored)}
        write_bytes(file, save({name: tensor.contiguous() for name, tensor in self.tensors.items()}, metadata))


@dataclass(frozen=True)
class Timing:
    """Durations of the parts of a task.

    Attributes:
        read: Seconds spent waiting for the weight.
        decompose: Seconds spent on decompositions.
        write: Seconds spent waiting until an earlier result is written.
    """

    read: float
    decompose: float
    write: float


@dataclass(frozen=True)
class _LoadedWeight:
    """Weight (out, in) of a task, with the fingerprint of the stored tensor."""

    matrix: Tensor
    fingerprint: str


def run_task(task: ModuleTask) -> Timing:
    """Run a single task with `run_in_turn`."""
    ((_, timing),) = run_in_turn([task])
    return timing


def run_in_turn(tasks: Sequence[ModuleTask]) -> Iterator[tuple[ModuleTask, Timing]]:
    """Run tasks one after the other.

    While a weight is decomposed, a thread reads the next weight and writes the previous result.

    Args:
        tasks: Tasks, in the order in which to run them.

    Yields:
        The task and its durations, after each decomposition.

    Raises:
        ModelError: A weight is not finite.
    """
    # On a large checkpoint, decompositions take 99 % of the time with this thread, and 84.5 % without it.
    with ThreadPoolExecutor(1) as io_thread:
        next_weight = io_thread.submit(_load, tasks[0]) if tasks else None
        pending_write: Future[None] | None = None
        for index, task in enumerate(tasks):
            assert next_weight is not None
            started_at = time.perf_counter()
            loaded = next_weight.result()
            loaded_at = time.perf_counter()
            next_weight = io_thread.submit(_load, tasks[index + 1]) if index + 1 < len(tasks) else None
            result = _decompose(task, loaded)
            decomposed_at = time.perf_counter()
            if pending_write is not None:
                pending_write.result()
            pending_write = io_thread.submit(result.write, task.file)
            # After the last task, no further iteration waits for the write.
            if next_weight is None:
                pending_write.result()
            yield task, Timing(loaded_at - started_at, decomposed_at - loaded_at, time.perf_counter() - decomposed_at)


def _load(task: ModuleTask) -> _LoadedWeight:
    stored = read_tensor(task.weight.tensor)
    return _LoadedWeight(task.weight.to_matrix(stored), digest(stored))


@torch.no_grad()
def _decompose(task: ModuleTask, loaded: _LoadedWeight) -> ModuleResult:
    weight = loaded.matrix.to(task.device)
    with nullcontext() if task.cached else without_cache():
        initial_factors = [_initial_factors(task, planned, weight) for planned in task.adapters]
    A, B = (factor.stack() for factor in build_factors(initial_factors, task.plan))
    tensors = {"lora_A.weight": A, "lora_B.weight": B}
    # PEFT computes magnitudes only for new adapters. The file of a saved adapter must contain them.
    if task.plan.options.dora:
        validate_dora_rows(weight, task.module)
        tensors["lora_magnitude_vector"] = weight.to(A.dtype).norm(dim=1).cpu()
    floored = {
        initial.planned.projection.name: int(initial.factors.floored)
        for initial in initial_factors
        if initial.factors.floored
    }
    return ModuleResult(task.module, tensors, loaded.fingerprint, floored)


def _initial_factors(task: ModuleTask, planned: PlannedAdapter, weight: Tensor) -> InitialFactors:
    generator = torch.Generator().manual_seed(derive_seed(task.seed, planned.projection.name))
    rows = select_rows(weight, planned.projection)
    factors = planned.init.factors(rows, planned.rank, scaling=planned.scaling, generator=generator)
    return InitialFactors(planned, Factors(factors.A.cpu(), factors.B.cpu(), factors.floored.cpu()))


def derive_seed(seed: int, name: str) -> int:
    """Derive a seed from a run's seed and the name of a module or projection, independent of the order of tasks."""
    # The shift makes the seed fit into a signed 64-bit integer.
    return int.from_bytes(sha256(f"{seed} {name}".encode()).digest()[:8], "little") >> 1
