"""`ailora export`: a trained adapter as the plain LoRA that servers read, of its full rank or of a smaller one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint
from ailora.adapter_io.peft_config_file import CONFIG_NAME, WEIGHTS_NAME, validate_plain
from ailora.adapter_io.update_norms import best_approximation, difference, padded, size, spectrum
from ailora.atomic_io import write_json
from ailora.checkpoints.adapter_files import WORDS, write_tensors
from ailora.checkpoints.output_dir import OutputDir, file_state
from ailora.errors import InputError
from ailora.plan.adapter_metadata import METADATA_NAME, Exported, find_metadata_file, library_versions
from ailora.safetensors_io import TensorSpec, read_tensor
from ailora.safetensors_io.dtypes import parse_dtype
from ailora.weights.base_weight import all_finite


@dataclass(frozen=True)
class ExportReport:
    """What `export` made.

    Attributes:
        folder: the export's folder.
        rank: the one rank of all modules: a server's `max_lora_rank`.
        dtype: of the factors.
        errors: by module, the Frobenius norm of what was lost, and of the update.
        error: the same over all modules, relative to the update; 0 for an exact export.
        saved_modules: modules that were trained whole and travel along, which most servers refuse.
    """

    folder: str
    rank: int
    dtype: str
    errors: dict[str, tuple[float, float]]
    error: float
    saved_modules: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)


def export(
    adapter: Path | str,
    out: Path | str,
    *,
    rank: int | None = None,
    energy: float | None = None,
    dtype: str = "fp32",
    force: bool = False,
) -> ExportReport:
    """Write an adapter as a plain LoRA for the untouched base, all modules of one rank and one scaling.

    Servers read one rank and one alpha for all modules; where the adapter has several, smaller factors are filled up
    with zeros and the scaling goes into `B`. Without `rank` and `energy` nothing is lost but the dtype's rounding.
    Recompressing costs a QR of the factors and an SVD of a small matrix.

    Args:
        adapter: an adapter's folder, or a run's.
        out: the folder to write.
        rank: recompress every module to this rank.
        energy: recompress to the least rank that keeps this share of `|dW|^2` in every module, 0 < energy <= 1.
        dtype: fp32, bf16 or fp16, of the factors; modules that were trained whole keep theirs.
        force: replace what `out` holds.

    Raises:
        InputError: no LoRA there, `rank` and `energy` out of range or both, a DoRA to be recompressed, an adapter that
            belongs on residual weights, factors that overflow the dtype.
    """
    made = parse_dtype(dtype)
    source = AdapterCheckpoint.open(adapter)
    validate_plain(source.config, source.folder)
    source.validate_untouched_base()
    _validate_target(rank, energy, source)
    target = _target_rank(source, rank, energy)
    scaling = _shared_scaling(source, target)
    files = _files(source)
    request = {
        "command": "export",
        "files": [file_state(file) for file in files],
        "options": [rank, energy, dtype],
        "versions": library_versions(),
    }
    output = OutputDir(out)
    with output.acquire(request, reads=files, writes=[WEIGHTS_NAME, CONFIG_NAME, METADATA_NAME], force=force) as done:
        factors = _Factors(source, target, scaling, made, exact=rank is None and energy is None)
        errors = factors.errors()
        lost, whole = (math.sqrt(sum(pair[i] ** 2 for pair in errors.values())) for i in (0, 1))
        error = lost / whole if whole > 0 else 0.0
        if not done:
            write_tensors(output.folder / WEIGHTS_NAME, factors.planned(), factors.tensor)
            if source.metadata:
                exported = Exported(rank=target, dtype=str(made).removeprefix("torch."), error=error)
                source.metadata.model_copy(update={"exported": exported}).write(output.folder)
            write_json(output.folder / CONFIG_NAME, _config(source, target, scaling))
            output.finish()
    name = str(made).removeprefix("torch.")
    return ExportReport(str(out), target, name, errors, error, tuple(sorted(source.saved)))


def _files(source: AdapterCheckpoint) -> list[Path]:
    """List the files of an adapter that an export reads."""
    metadata = find_metadata_file(source.folder) if source.metadata else None
    return [source.folder / WEIGHTS_NAME, source.folder / CONFIG_NAME, *([metadata] if metadata else [])]


@dataclass(frozen=True)
class _Factors:
    """The factors of the export, made when they are asked for."""

    source: AdapterCheckpoint
    rank: int
    scaling: float | None
    dtype: torch.dtype
    exact: bool

    def of(self, module: str) -> tuple[Tensor, Tensor]:
        """`B` and `A` in the dtype of the export."""
        A, B = self.source.modules[module].factors()
        made_B, made_A = padded(B, A, self.rank) if self.exact else best_approximation(B, A, self.rank)
        if self.scaling is None:
            made_B = made_B.double() * self.source.modules[module].scaling
        made_B, made_A = made_B.to(self.dtype), made_A.to(self.dtype)
        if not (all_finite(made_A) and all_finite(made_B)):
            raise InputError(f"{module}: factors of the export are not finite in {self.dtype}")
        return made_B, made_A

    def errors(self) -> dict[str, tuple[float, float]]:
        """By module, the norm of what is lost, and of the update."""
        errors = {}
        for module in tqdm(self.source.modules, desc="exporting", unit="module", leave=False, disable=None):
            A, B = self.source.modules[module].factors()
            scaling = self.source.modules[module].scaling
            made_B, made_A = self.of(module)
            made_scaling = 1.0 if self.scaling is None else self.scaling
            same = self.exact and self.dtype is A.dtype and self.scaling is not None
            lost = 0.0 if same else difference((scaling * B.double(), A), (made_scaling * made_B.double(), made_A))
            errors[module] = (lost, scaling * size(B, A))
        return errors

    def planned(self) -> Iterator[TensorSpec]:
        """The tensors of the file."""
        word = WORDS[self.dtype]
        for found in self.source.modules.values():
            yield TensorSpec(found.A.name, word, (self.rank, found.A.shape[1]))
            yield TensorSpec(found.B.name, word, (found.B.shape[0], self.rank))
            if found.magnitude:
                yield TensorSpec(found.magnitude.name, found.magnitude.dtype, found.magnitude.shape)
        for stored in self.source.saved.values():
            yield TensorSpec(stored.name, stored.dtype, stored.shape)

    def tensor(self, name: str) -> Tensor:
        """The tensor of a name in the file."""
        for module, found in self.source.modules.items():
            if name in (found.A.name, found.B.name):
                return self.of(module)[1 if name == found.A.name else 0]
        kept = [found.magnitude for found in self.source.modules.values() if found.magnitude]
        kept += self.source.saved.values()
        return read_tensor(next(stored for stored in kept if stored.name == name))


def _validate_target(rank: int | None, energy: float | None, source: AdapterCheckpoint) -> None:
    if rank is not None and energy is not None:
        raise InputError("give a rank or an energy, not both")
    most = max(min(found.B.shape[0], found.A.shape[1]) for found in source.modules.values())
    if rank is not None and (type(rank) is not int or not 1 <= rank <= most):
        raise InputError(f"rank {rank!r} is not possible: a whole number from 1 to {most}")
    if energy is not None and not (isinstance(energy, int | float) and 0 < energy <= 1):
        raise InputError(f"energy {energy!r} is not possible: a share, 0 < energy <= 1")
    if source.dora and (rank is not None or energy is not None):
        raise InputError("a DoRA cannot be recompressed: its magnitudes belong to the exact directions")


def _target_rank(source: AdapterCheckpoint, rank: int | None, energy: float | None) -> int:
    if rank is not None:
        return rank
    if energy is None:
        return max(module.rank for module in source.modules.values())
    factors = (module.factors() for module in source.modules.values())
    return max(_rank_for(spectrum(B, A), energy) for A, B in factors)


def _rank_for(values: Tensor, energy: float) -> int:
    """The least number of singular values that hold a share of the sum of their squares; 1 for no update at all."""
    squares = values.square()
    total = squares.sum()
    if total == 0:
        return 1
    # The sum of all may fall short of the total by rounding.
    reached = squares.cumsum(0) >= energy * total * (1 - 1e-12)
    return int(reached.to(torch.uint8).argmax()) + 1


def _shared_scaling(source: AdapterCheckpoint, rank: int) -> float | None:
    """The scaling of all modules if they have one that a whole alpha can say; None: it goes into `B`."""
    scalings = {module.scaling for module in source.modules.values()}
    if len(scalings) == 1:
        (scaling,) = scalings
        if scaling * rank == int(scaling * rank):
            return scaling
    return None


def _config(source: AdapterCheckpoint, rank: int, scaling: float | None) -> dict[str, Any]:
    alpha = rank if scaling is None else int(scaling * rank)
    changes: dict[str, Any] = {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
    }
    changes |= {"init_lora_weights": True, "inference_mode": True}
    return {**source.config, **changes}
