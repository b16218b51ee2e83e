"""`ailora export`: convert a trained adapter to a plain LoRA for servers, exactly or with a smaller rank."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint
from ailora.adapter_io.adapter_digests import write_digests
from ailora.adapter_io.completeness import validate_complete
from ailora.adapter_io.lora_weights import LoraWeights, add_prefix
from ailora.adapter_io.peft_config_file import CONFIG_NAME, WEIGHTS_NAME, validate_plain
from ailora.adapter_io.update_norms import (
    approximate_product,
    compute_distance,
    compute_norm,
    compute_singular_values,
    pad_factors,
)
from ailora.atomic_io import json_bytes, write_bytes
from ailora.checkpoints.output_dir import OutputDir
from ailora.checkpoints.request import read_file_state
from ailora.errors import InputError
from ailora.formatting import is_real
from ailora.library_versions import library_versions
from ailora.model_loading import load_on_meta
from ailora.model_path import model_folder
from ailora.plan.adapter_metadata import METADATA_NAME, Exported
from ailora.safetensors_io import TensorSpec, parse_dtype, read_tensor, write_tensors
from ailora.safetensors_io.header import SAFETENSORS_DTYPES
from ailora.weights.base_weight import all_finite

_LOG = logging.getLogger("ailora")
#: Values of `max_lora_rank` that vLLM accepts (its type `MaxLoRARanks`).
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class ExportReport:
    """Report of an `export`.

    Attributes:
        folder: Folder of the export.
        rank: Common rank of all modules.
        dtype: Dtype of the factors.
        errors: Module -> Frobenius norm of the error, and Frobenius norm of the update.
        error: Frobenius norm of the error over all modules, relative to the norm of the update; 0 for an exact export.
            If the adapter is itself an export, the error of the earlier export is not included; `ailora.json` records
            the total error.
        saved_modules: Names of exported tensors from fully fine-tuned modules. Most servers refuse such tensors.
        completeness_checked: Whether the adapter was checked for missing and additional modules. False for an
            adapter without `ailora.json` if its base model is not available.
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
        """Smallest value of vLLM's `max_lora_rank` that admits the adapter. None for ranks above 512."""
        return next((limit for limit in _VLLM_RANKS if limit >= self.rank), None)

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
    """Write an adapter as a plain LoRA for the unchanged base, with a single rank and scaling for all modules.

    Servers read a single rank and a single alpha. Therefore, factors of smaller rank are padded with zeros, and
    scalings that differ between modules are multiplied into `B`. Without `rank` and `energy`, the export is exact up to
    rounding in the dtype. With either, each update is replaced by its best approximation of the new rank, which is
    computed from the factors without forming `B A`.

    For an adapter without `ailora.json`, the base model is needed to check that no module is missing. If the model is
    not available, a warning says that this check was skipped.

    Args:
        adapter: Folder of an adapter, or of a run.
        out: Folder to write.
        rank: New rank of every module. None means the rank for `energy`, or without `energy` the largest rank of the
            adapter.
        energy: Share of `|dW|^2` to keep in every module, 0 < energy <= 1. The new rank is the smallest that keeps
            this share in all modules.
        dtype: Dtype of the factors: fp32, bf16 or fp16. Fully fine-tuned modules keep their dtype.
        force: Whether to replace existing files in `out`.

    Returns:
        The report, with the rank and the errors.

    Raises:
        InputError: The adapter is invalid, needs residual weights, or has entries too large for the dtype; `rank` or
            `energy` is out of range or given for a DoRA adapter, or both are given; the dtype is unknown; or `out`
            cannot be used (see `OutputDir.acquire`).
    """
    torch_dtype = parse_dtype(dtype)
    checkpoint = AdapterCheckpoint.open(adapter)
    validate_plain(checkpoint.config, checkpoint.folder)
    checkpoint.validate_no_residual_base()
    checkpoint.validate_finite()
    completeness_checked = _check_complete(checkpoint)
    _validate_rank_options(rank, energy, checkpoint)
    common_rank = _choose_rank(checkpoint, rank, energy)
    exact = rank is None and energy is None
    scaling = _find_shared_scaling(checkpoint, common_rank)
    conversion = _Conversion(checkpoint, common_rank, scaling, torch_dtype, exact)
    reads = checkpoint.files
    request = {
        "command": "export",
        "files": [read_file_state(file) for file in reads],
        "options": [rank, energy, dtype],
        "versions": library_versions(),
    }
    output = OutputDir(out)
    with output.acquire(request, reads=reads, writes=[WEIGHTS_NAME, CONFIG_NAME, METADATA_NAME], force=force) as done:
        if done:
            # The files record only the total error, but the report needs the error of each module.
            conversion.measure()
        else:
            conversion.write(output.folder)
            output.finish()
    saved = tuple(sorted(checkpoint.saved))
    return ExportReport(
        folder=str(output.folder),
        rank=common_rank,
        dtype=conversion.dtype_name,
        errors=conversion.errors,
        error=conversion.error,
        saved_modules=saved,
        completeness_checked=completeness_checked,
    )


@dataclass(frozen=True)
class _Conversion:
    """Conversion of an adapter, one module at a time.

    Attributes:
        checkpoint: Adapter to export.
        rank: Common rank of the exported modules.
        scaling: Common scaling of the exported modules. If None, the scaling of each module is multiplied into its `B`.
        dtype: Dtype of the exported factors.
        exact: Whether to pad the factors with zeros, so that their product is unchanged. If False, factors of the new
            rank approximate the product.
        errors: Module -> norm of the error, and norm of the update. Filled by the conversion.
    """

    checkpoint: AdapterCheckpoint
    rank: int
    scaling: float | None
    dtype: torch.dtype
    exact: bool
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def dtype_name(self) -> str:
        """Name of the dtype in torch, without `torch.`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def error(self) -> float:
        """Norm of the error over all modules, relative to the norm of the update."""
        error_norm = math.sqrt(sum(error**2 for error, _ in self.errors.values()))
        update_norm = math.sqrt(sum(update**2 for _, update in self.errors.values()))
        return error_norm / update_norm if update_norm > 0 else 0.0

    def _total_error(self) -> float:
        """Return the error of this and of an earlier export together, relative to the norm of the trained update."""
        earlier = self.checkpoint.metadata and self.checkpoint.metadata.exported
        if not earlier:
            return self.error
        # The best approximation of smaller rank is orthogonal to its error. Relative to the trained update, the squared
        # norm of the earlier export is therefore 1 - error^2. The errors of two exports are orthogonal too, up to
        # rounding.
        return math.sqrt(earlier.error**2 + max(0.0, 1 - earlier.error**2) * self.error**2)

    def measure(self) -> None:
        """Compute the errors of a finished export without writing files."""
        for _ in self._factors():
            pass

    def write(self, folder: Path) -> None:
        """Write the files of the export."""
        write_tensors(folder / WEIGHTS_NAME, list(self._specs()), self._tensors())
        if self.checkpoint.metadata:
            exported = Exported(rank=self.rank, dtype=self.dtype_name, error=self._total_error())
            self.checkpoint.metadata.model_copy(update={"exported": exported}).write(folder)
        # Write the configuration last: loaders look for this file first, so they never load a half-written adapter.
        config = json_bytes(self._config())
        write_digests(folder, pending={CONFIG_NAME: config})
        write_bytes(folder / CONFIG_NAME, config)

    def _factors(self) -> Iterator[tuple[LoraWeights, Tensor, Tensor]]:
        modules = self.checkpoint.modules.values()
        for weights in tqdm(modules, desc="exporting", unit="module", leave=False, disable=None):
            yield weights, *self._convert(weights)

    def _convert(self, weights: LoraWeights) -> tuple[Tensor, Tensor]:
        """Convert the factors of a module, and record the error."""
        A, B = weights.read_factors()
        new_B, new_A = pad_factors(B, A, self.rank) if self.exact else approximate_product(B, A, self.rank)
        if self.scaling is None:
            new_B = new_B.double() * weights.scaling
        new_A, new_B = new_A.to(self.dtype), new_B.to(self.dtype)
        if not (all_finite(new_A) and all_finite(new_B)):
            raise InputError(f"{weights.module}: exported factors are not finite in {self.dtype}: choose another dtype")
        error_norm = 0.0
        # Padding alone is exact. A computed error would show only the rounding of its own computation.
        if not self.exact or self.dtype is not A.dtype or self.scaling is None:
            new_scaling = 1.0 if self.scaling is None else self.scaling
            error_norm = compute_distance((weights.scaling * B.double(), A), (new_scaling * new_B.double(), new_A))
        self.errors[weights.module] = (error_norm, weights.scaling * compute_norm(B, A))
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


def _check_complete(checkpoint: AdapterCheckpoint) -> bool:
    """Refuse an adapter with missing or additional modules.

    Returns:
        Whether the adapter was checked. False for an adapter without `ailora.json` if its base model is not
            available.

    Raises:
        InputError: The adapter lacks a module, or has additional ones.
    """
    # `AdapterCheckpoint.open` has already compared the file with the list of modules in `ailora.json`.
    if checkpoint.metadata is not None:
        return True
    name = checkpoint.config.get("base_model_name_or_path")
    try:
        if not name:
            raise InputError(f"{CONFIG_NAME} names no base model")
        base = load_on_meta(str(model_folder(name)), checkpoint.task_type, any_class=True)
    except InputError as error:
        _LOG.warning(
            "%s: not checked whether the file has factors for exactly the modules selected by %s, because the base "
            "model is not available: %s",
            checkpoint.folder,
            CONFIG_NAME,
            error,
        )
        return False
    validate_complete(checkpoint, base)
    return True


def _validate_rank_options(rank: int | None, energy: float | None, checkpoint: AdapterCheckpoint) -> None:
    if rank is not None and energy is not None:
        raise InputError("give a rank or an energy, not both")
    max_rank = max(min(weights.shape) for weights in checkpoint.modules.values())
    if rank is not None and (type(rank) is not int or not 1 <= rank <= max_rank):
        raise InputError(f"rank must be a whole number between 1 and {max_rank}, got {rank!r}")
    if energy is not None and not (is_real(energy) and 0 < energy <= 1):
        raise InputError(f"energy must be a share, 0 < energy <= 1, got {energy!r}")
    if checkpoint.dora and (rank is not None or energy is not None):
        raise InputError("a DoRA cannot be exported with a smaller rank: its magnitudes fit only the exact update")


def _choose_rank(checkpoint: AdapterCheckpoint, rank: int | None, energy: float | None) -> int:
    if rank is not None:
        return rank
    if energy is None:
        return max(weights.rank for weights in checkpoint.modules.values())
    factors = (weights.read_factors() for weights in checkpoint.modules.values())
    return max(_find_rank(compute_singular_values(B, A), energy) for A, B in factors)


def _find_rank(values: Tensor, energy: float) -> int:
    """Return the smallest rank that keeps a share `energy` of the squared norm, or 1 for a zero update."""
    squares = values.square()
    total = squares.sum()
    if total == 0:
        return 1
    # Rounding may leave the last cumulative sum below the total.
    reached = squares.cumsum(0) >= energy * total * (1 - 1e-12)
    # `argmax` finds the first True; torch does not implement it for booleans.
    return int(reached.to(torch.uint8).argmax()) + 1


def _find_shared_scaling(checkpoint: AdapterCheckpoint, rank: int) -> float | None:
    """Return the common scaling of all modules, or None if scalings differ or alpha would not be an integer."""
    scalings = {weights.scaling for weights in checkpoint.modules.values()}
    if len(scalings) == 1:
        (scaling,) = scalings
        # Servers expect an integer alpha.
        if scaling * rank == int(scaling * rank):
            return scaling
    return None
