"""`ailora export`: a trained adapter as the plain LoRA that servers read, of its full rank or of a smaller one."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint, LoraWeights, add_prefix
from ailora.adapter_io.adapter_digests import write_digests
from ailora.adapter_io.peft_config_file import CONFIG_NAME, WEIGHTS_NAME, validate_plain
from ailora.adapter_io.update_norms import (
    approximate_product,
    compute_distance,
    compute_norm,
    compute_singular_values,
    pad_factors,
)
from ailora.atomic_io import json_bytes, write_bytes
from ailora.checkpoints.output_dir import OutputDir, file_state
from ailora.errors import InputError
from ailora.library_versions import library_versions
from ailora.model_loading import load_on_meta
from ailora.model_path import model_folder
from ailora.plan.adapter_metadata import METADATA_NAME, Exported
from ailora.safetensors_io import TensorSpec, parse_dtype, read_tensor, write_tensors
from ailora.safetensors_io.header import SAFETENSORS_DTYPES
from ailora.weights.base_weight import all_finite

_LOG = logging.getLogger("ailora")
#: What vLLM takes for `max_lora_rank` (its `MaxLoRARanks`).
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class ExportReport:
    """Report of an `export`.

    Attributes:
        folder: The export's folder.
        rank: The one rank of all modules.
        dtype: Dtype of the factors.
        errors: By module, the Frobenius norm of what was lost, and of the update.
        error: The same over all modules, relative to the update; 0 for an exact export.
        saved_modules: Modules that were trained whole and travel along, which most servers refuse.
        completeness_checked: Whether the file has the factors of all adapted modules, and no others. False: unknown, as
            the adapter is not ours and its base model is not here.
    """

    folder: str
    rank: int
    dtype: str
    errors: dict[str, tuple[float, float]]
    error: float
    saved_modules: tuple[str, ...]
    completeness_checked: bool = True

    @property
    def vllm_max_lora_rank(self) -> int | None:
        """The value of vLLM's `max_lora_rank`, which takes some only; None for a rank that is beyond all of them."""
        return next((allowed for allowed in _VLLM_RANKS if allowed >= self.rank), None)

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain data."""
        return {**asdict(self), "vllm_max_lora_rank": self.vllm_max_lora_rank}


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

    The base model is not needed. Of a stock adapter, though, only its base shows whether the file is complete; without
    it, a warning says that this was not checked.

    Args:
        adapter: An adapter's folder, or a run's.
        out: The folder to write.
        rank: Recompress every module to this rank.
        energy: Recompress to the least rank that keeps this share of `|dW|^2` in every module, 0 < energy <= 1.
        dtype: fp32, bf16 or fp16, of the factors; modules that were trained whole keep theirs.
        force: Replace what `out` holds.

    Returns:
        The rank, and what was lost.

    Raises:
        InputError: No LoRA there, `rank` and `energy` out of range or both, a DoRA to be recompressed, an adapter that
            belongs on residual weights, factors that overflow the dtype.
    """
    torch_dtype = parse_dtype(dtype)
    checkpoint = AdapterCheckpoint.open(adapter)
    validate_plain(checkpoint.config, checkpoint.folder)
    checkpoint.validate_untouched_base()
    checkpoint.validate_finite()
    completeness_checked = _validate_complete(checkpoint)
    _validate_target(rank, energy, checkpoint)
    target = _target_rank(checkpoint, rank, energy)
    exact = rank is None and energy is None
    conversion = _Conversion(checkpoint, target, _shared_scaling(checkpoint, target), torch_dtype, exact)
    reads = checkpoint.files
    request = {
        "command": "export",
        "files": [file_state(file) for file in reads],
        "options": [rank, energy, dtype],
        "versions": library_versions(),
    }
    output = OutputDir(out)
    with output.acquire(request, reads=reads, writes=[WEIGHTS_NAME, CONFIG_NAME, METADATA_NAME], force=force) as done:
        if done:
            conversion.measure()
        else:
            conversion.write(output.folder)
            output.finish()
    saved = tuple(sorted(checkpoint.saved))
    return ExportReport(
        folder=str(out),
        rank=target,
        dtype=conversion.dtype_name,
        errors=conversion.errors,
        error=conversion.error,
        saved_modules=saved,
        completeness_checked=completeness_checked,
    )


@dataclass(frozen=True)
class _Conversion:
    """The factors of the export, computed once, module by module, and what each loses.

    Attributes:
        checkpoint: The adapter.
        rank: The rank of all modules.
        scaling: Their scaling. None: it goes into `B`.
        dtype: The dtype of the factors.
        exact: Whether smaller factors are filled up with zeros, instead of recompressed.
        errors: By module, the norm of what is lost, and of the update; filled as the factors are computed.
    """

    checkpoint: AdapterCheckpoint
    rank: int
    scaling: float | None
    dtype: torch.dtype
    exact: bool
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def dtype_name(self) -> str:
        """The dtype's name in torch."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def error(self) -> float:
        """The norm of what is lost over all modules, relative to the update."""
        lost, update = (math.sqrt(sum(pair[i] ** 2 for pair in self.errors.values())) for i in (0, 1))
        return lost / update if update > 0 else 0.0

    def measure(self) -> None:
        """Compute the errors alone."""
        for _ in self._factors():
            pass

    def write(self, folder: Path) -> None:
        """Write the files; loaders look for the last one first."""
        write_tensors(folder / WEIGHTS_NAME, list(self._specs()), self._tensors())
        if self.checkpoint.metadata:
            exported = Exported(rank=self.rank, dtype=self.dtype_name, error=self.error)
            self.checkpoint.metadata.model_copy(update={"exported": exported}).write(folder)
        config = json_bytes(self._config())
        write_digests(folder, pending={CONFIG_NAME: config})
        write_bytes(folder / CONFIG_NAME, config)

    def _factors(self) -> Iterator[tuple[LoraWeights, Tensor, Tensor]]:
        modules = self.checkpoint.modules.values()
        for weights in tqdm(modules, desc="exporting", unit="module", leave=False, disable=None):
            yield weights, *self._convert(weights)

    def _convert(self, weights: LoraWeights) -> tuple[Tensor, Tensor]:
        """Return `A` and `B` of a module as they are exported, and note what is lost."""
        A, B = weights.factors()
        new_B, new_A = pad_factors(B, A, self.rank) if self.exact else approximate_product(B, A, self.rank)
        if self.scaling is None:
            new_B = new_B.double() * weights.scaling
        new_A, new_B = new_A.to(self.dtype), new_B.to(self.dtype)
        if not (all_finite(new_A) and all_finite(new_B)):
            raise InputError(f"{weights.module}: factors of the export are not finite in {self.dtype}")
        lost = 0.0
        if not self.exact or self.dtype is not A.dtype or self.scaling is None:
            new_scaling = 1.0 if self.scaling is None else self.scaling
            lost = compute_distance((weights.scaling * B.double(), A), (new_scaling * new_B.double(), new_A))
        self.errors[weights.module] = (lost, weights.scaling * compute_norm(B, A))
        return new_A, new_B

    def _specs(self) -> Iterator[TensorSpec]:
        dtype = SAFETENSORS_DTYPES[self.dtype]
        for weights in self.checkpoint.modules.values():
            out, in_ = weights.shape
            yield TensorSpec(add_prefix(weights.A.name), dtype, (self.rank, in_))
            yield TensorSpec(add_prefix(weights.B.name), dtype, (out, self.rank))
            if weights.magnitude:
                yield TensorSpec.from_tensor(add_prefix(weights.magnitude.name), weights.magnitude)
        for name, stored in self.checkpoint.saved.items():
            yield TensorSpec.from_tensor(add_prefix(name), stored)

    def _tensors(self) -> Iterator[Tensor]:
        """Yield the tensors in the order of `_specs`."""
        for weights, A, B in self._factors():
            yield A
            yield B
            if weights.magnitude:
                yield read_tensor(weights.magnitude)
        for stored in self.checkpoint.saved.values():
            yield read_tensor(stored)

    def _config(self) -> dict[str, object]:
        alpha = self.rank if self.scaling is None else int(self.scaling * self.rank)
        return {
            **self.checkpoint.config,
            **{"r": self.rank, "lora_alpha": alpha, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False},
            **{"init_lora_weights": True, "inference_mode": True},
        }


def _validate_complete(checkpoint: AdapterCheckpoint) -> bool:
    """Refuse an incomplete file. Of a stock adapter only the base model shows whether it is.

    Returns:
        Whether it was checked.

    Raises:
        InputError: The file lacks a module, or has others.
    """
    if checkpoint.metadata is not None:
        return True
    name = checkpoint.config.get("base_model_name_or_path")
    try:
        if not name:
            raise InputError(f"{CONFIG_NAME} names no base model")
        base = load_on_meta(str(model_folder(name)), checkpoint.task_type, any_class=True)
    except InputError as error:
        _LOG.warning(
            "%s: not checked whether the file has the factors of every module that %s adapts, and no others, for which "
            "the base model is needed: %s",
            checkpoint.folder,
            CONFIG_NAME,
            error,
        )
        return False
    checkpoint.validate_complete(base)
    return True


def _validate_target(rank: int | None, energy: float | None, checkpoint: AdapterCheckpoint) -> None:
    if rank is not None and energy is not None:
        raise InputError("give a rank or an energy, not both")
    largest = max(min(weights.shape) for weights in checkpoint.modules.values())
    if rank is not None and (type(rank) is not int or not 1 <= rank <= largest):
        raise InputError(f"rank {rank!r} is not possible: a whole number from 1 to {largest}")
    if energy is not None and not (isinstance(energy, int | float) and 0 < energy <= 1):
        raise InputError(f"energy {energy!r} is not possible: a share, 0 < energy <= 1")
    if checkpoint.dora and (rank is not None or energy is not None):
        raise InputError("a DoRA cannot be recompressed: its magnitudes belong to the exact directions")


def _target_rank(checkpoint: AdapterCheckpoint, rank: int | None, energy: float | None) -> int:
    if rank is not None:
        return rank
    if energy is None:
        return max(weights.rank for weights in checkpoint.modules.values())
    factors = (weights.factors() for weights in checkpoint.modules.values())
    return max(_rank_for(compute_singular_values(B, A), energy) for A, B in factors)


def _rank_for(values: Tensor, energy: float) -> int:
    """Return the least number of singular values that hold a share of the sum of their squares; 1 for no update."""
    squares = values.square()
    total = squares.sum()
    if total == 0:
        return 1
    # The sum of all may fall short of the total by rounding.
    reached = squares.cumsum(0) >= energy * total * (1 - 1e-12)
    return int(reached.to(torch.uint8).argmax()) + 1


def _shared_scaling(checkpoint: AdapterCheckpoint, rank: int) -> float | None:
    """Return the scaling of all modules if they have one that a whole alpha can say."""
    scalings = {weights.scaling for weights in checkpoint.modules.values()}
    if len(scalings) == 1:
        (scaling,) = scalings
        if scaling * rank == int(scaling * rank):
            return scaling
    return None
