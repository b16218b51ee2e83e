"""LoRA weights in an adapter file: the factors of each module, found by PEFT's tensor names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ailora.adapter_io.peft_config_file import CONFIG_NAME, WEIGHTS_NAME, find_pattern_value
from ailora.errors import InputError
from ailora.module_pattern import ModulePatterns
from ailora.safetensors_io import Header, StoredTensor, read_tensor
from ailora.weights.base_weight import all_finite

#: Prefix that PEFT adds to the module names of the base model.
PREFIX = "base_model.model."
#: Suffix of a tensor's name -> field of `LoraWeights` for the tensor.
_PARTS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
#: Names of frozen weights, which are skipped. PEFT saves those of adapted embeddings and heads, and the originals of
#: resized embeddings in `modules_to_save`.
_FROZEN_WEIGHT = re.compile(r"\.base_layer\.(weight|bias)$|\.original_module\.")
#: Largest accepted entry of a factor in float64. The squares of entries in a product of two such factors, and sums of
#: these squares, are then finite in float64.
_MAX_FLOAT64_ENTRY = 1e60


def add_prefix(name: str) -> str:
    """Return a tensor name with PEFT's prefix. In some files, names lack the prefix."""
    return PREFIX + name.removeprefix(PREFIX)


@dataclass(frozen=True)
class LoraWeights:
    """Stored LoRA factors of a module. Tensors are read on request.

    Attributes:
        module: Name of the module in the base model.
        A: Stored factor `A` (r, in).
        B: Stored factor `B` (out, r).
        magnitude: Stored DoRA magnitudes (out,). None without DoRA.
        scaling: Scaling `s` in the update `dW = s B A`.
    """

    module: str
    A: StoredTensor
    B: StoredTensor
    magnitude: StoredTensor | None
    scaling: float

    @property
    def rank(self) -> int:
        """Rank r of the stored factors, twice the training rank if they contain an anchor."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (out, in) of the adapted weight."""
        return self.B.shape[0], self.A.shape[1]

    def read_factors(self) -> tuple[Tensor, Tensor]:
        """Read the factors.

        Returns:
            `A` (r, in) and `B` (out, r), in float64 if either is stored in float64, else in float32.

        Raises:
            InputError: A factor has NaN or infinite entries, or entries too large for float64 products.
        """
        A, B = read_tensor(self.A), read_tensor(self.B)
        for stored, tensor in ((self.A, A), (self.B, B)):
            if not all_finite(tensor):
                raise InputError(f"{stored} holds NaN or infinite entries")
            if tensor.dtype is torch.float64 and tensor.abs().max() > _MAX_FLOAT64_ENTRY:
                raise InputError(f"{stored} holds entries beyond {_MAX_FLOAT64_ENTRY:g}")
        dtype = torch.promote_types(torch.promote_types(A.dtype, B.dtype), torch.float32)
        return A.to(dtype), B.to(dtype)


def find_lora_weights(
    header: Header, config: Mapping[str, Any], folder: Path
) -> tuple[dict[str, LoraWeights], dict[str, StoredTensor]]:
    """Assign the tensors of an adapter file to modules.

    Args:
        header: Header of the weights file.
        config: PEFT's configuration, as plain data.
        folder: Folder of the adapter.

    Returns:
        LoRA weights by module name, and tensors of fully fine-tuned modules by parameter name, both in the base model.

    Raises:
        InputError: The file holds no LoRA factors, or factors of layers that are not linear; or tensors and
            configuration contradict each other.
    """
    parts_by_module: dict[str, dict[str, StoredTensor]] = {}
    full_weights: dict[str, StoredTensor] = {}
    # PEFT saves fully fine-tuned embeddings under two names. Plain names sort first, and `setdefault` keeps the first.
    for name, stored in sorted(header.tensors.items(), key=lambda item: ".modules_to_save." in item[0]):
        base_name = name.removeprefix(PREFIX)
        _validate_tensor(stored, header)
        suffix = next((suffix for suffix in _PARTS if base_name.endswith(f".{suffix}")), None)
        if suffix is not None:
            module = base_name.removesuffix(f".{suffix}")
            parts_by_module.setdefault(module, {})[_PARTS[suffix]] = stored
        elif _FROZEN_WEIGHT.search(base_name):
            continue
        elif re.search(r"(^|\.)lora_", base_name):
            raise InputError(
                f"{stored.file}: {name!r} is not the factor of a linear module; other LoRA layers are not supported"
            )
        else:
            full_weights.setdefault(base_name.replace(".modules_to_save.", "."), stored)
    if not parts_by_module:
        raise InputError(f"{folder / WEIGHTS_NAME} holds no LoRA factors")
    rank_patterns, alpha_patterns = (
        ModulePatterns(f"{folder / CONFIG_NAME}: {name}") for name in ("rank_pattern", "alpha_pattern")
    )
    modules = {
        module: _build_lora_weights(
            module, parts, folder, config, rank_patterns=rank_patterns, alpha_patterns=alpha_patterns
        )
        for module, parts in parts_by_module.items()
    }
    _validate_agreement(folder, config, modules, full_weights)
    return modules, full_weights


def _validate_tensor(stored: StoredTensor, header: Header) -> None:
    """Refuse a tensor that is empty or not floating-point, or whose name occurs with and without PEFT's prefix."""
    if not stored.floating:
        raise InputError(f"{stored}: the tensors of an adapter must be floating-point")
    if 0 in stored.shape:
        raise InputError(f"{stored} is empty: the file is damaged, or not from PEFT")
    base_name = stored.name.removeprefix(PREFIX)
    if base_name != stored.name and base_name in header.tensors:
        raise InputError(f"{stored.file} holds {base_name!r} twice, with and without the prefix {PREFIX!r}")


def _build_lora_weights(
    module: str,
    parts: Mapping[str, StoredTensor],
    folder: Path,
    config: Mapping[str, Any],
    *,
    rank_patterns: ModulePatterns,
    alpha_patterns: ModulePatterns,
) -> LoraWeights:
    where = f"{folder / WEIGHTS_NAME}: {module}"
    if "A" not in parts or "B" not in parts:
        raise InputError(f"{where} has no lora_{'A' if 'A' not in parts else 'B'}")
    A, B, magnitude = parts["A"], parts["B"], parts.get("magnitude")
    if len(A.shape) != 2 or len(B.shape) != 2 or A.shape[0] != B.shape[1]:
        raise InputError(f"{where}: lora_A {A.shape} and lora_B {B.shape} are not (r, in) and (out, r)")
    if magnitude is not None and magnitude.shape != B.shape[:1]:
        raise InputError(f"{where}: expected magnitudes of shape {B.shape[:1]}, got {magnitude.shape}")
    rank = find_pattern_value("rank_pattern", config, module, rank_patterns)
    alpha = find_pattern_value("alpha_pattern", config, module, alpha_patterns)
    if rank != A.shape[0]:
        raise InputError(f"{where} has rank {A.shape[0]}, but {CONFIG_NAME} says {rank}")
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LoraWeights(module, A, B, magnitude, scaling)


def _validate_agreement(
    folder: Path,
    config: Mapping[str, Any],
    modules: Mapping[str, LoraWeights],
    full_weights: Mapping[str, StoredTensor],
) -> None:
    """Refuse magnitudes without DoRA, DoRA without magnitudes, and a module with both factors and a full weight."""
    for weights in modules.values():
        if (weights.magnitude is not None) != bool(config.get("use_dora")):
            verb = "has no" if config.get("use_dora") else "has"
            raise InputError(
                f"{folder}: use_dora is {bool(config.get('use_dora'))} in {CONFIG_NAME}, but {weights.module} {verb} "
                f"magnitudes in {WEIGHTS_NAME}"
            )
    for name, stored in full_weights.items():
        if name.rpartition(".")[0] in modules:
            raise InputError(f"{stored} is the full weight of a module with LoRA factors: loaders would ignore it")
