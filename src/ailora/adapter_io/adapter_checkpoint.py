"""Read and validate a saved adapter: PEFT's files and our metadata."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ailora.adapter_io.adapter_digests import validate_digests
from ailora.adapter_io.peft_config_file import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    find_targets,
    pattern_value,
    read_config,
    validate_weights_file,
)
from ailora.errors import InputError
from ailora.formatting import pluralize
from ailora.lora.anchor import left_grid, unstack_A, unstack_B
from ailora.module_pattern import ModulePatterns
from ailora.path_kind import resolve_adapter_dir
from ailora.plan.adapter_metadata import METADATA_NAME, AdapterMetadata, find_metadata, find_metadata_file
from ailora.plan.adapter_plan import Form, Plan, PlannedAdapter
from ailora.roles import find_linear_modules
from ailora.safetensors_io import StoredTensor, read_header, read_tensor
from ailora.weights.base_weight import all_finite, select_rows

#: PEFT's prefix before the names of the base model's modules.
PREFIX = "base_model.model."
#: Ends of the names that a LoRA of a linear module has in a file.
_PARTS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
#: Larger entries overflow float64 in products and their norms.
_MAX_FLOAT64_ENTRY = 1e100


def add_prefix(name: str) -> str:
    """Return the name of a tensor with PEFT's prefix, which some files leave out."""
    return PREFIX + name.removeprefix(PREFIX)


@dataclass(frozen=True)
class LoraWeights:
    """Location of one module's LoRA in a file.

    Attributes:
        module: Name of the module in the base model.
        A: Location of `A` (r, in).
        B: Location of `B` (out, r).
        magnitude: Location of the magnitudes (out,). None without DoRA.
        scaling: Scaling `s` of the update `dW = s B A`.
    """

    module: str
    A: StoredTensor
    B: StoredTensor
    magnitude: StoredTensor | None
    scaling: float

    @property
    def rank(self) -> int:
        """Rank of the factors in the file."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (out, in) of the adapted weight."""
        return self.B.shape[0], self.A.shape[1]

    def factors(self) -> tuple[Tensor, Tensor]:
        """Read the factors.

        Returns:
            `A` (r, in) and `B` (out, r), in float64 if a factor is stored in float64, else in float32.

        Raises:
            InputError: A factor has NaN, infinite or too large entries.
        """
        A, B = read_tensor(self.A), read_tensor(self.B)
        for stored, tensor in ((self.A, A), (self.B, B)):
            if not all_finite(tensor):
                raise InputError(f"{stored} holds NaN or infinite entries")
            if tensor.dtype is torch.float64 and tensor.abs().max() > _MAX_FLOAT64_ENTRY:
                raise InputError(f"{stored} holds entries beyond {_MAX_FLOAT64_ENTRY:g}")
        dtype = torch.promote_types(torch.promote_types(A.dtype, B.dtype), torch.float32)
        return A.to(dtype), B.to(dtype)


@dataclass(frozen=True)
class ProjectionFactors:
    """Factors of one planned adapter, as the file of its module holds them.

    Attributes:
        planned: Settings of the adapter.
        A: Rows of the module's `A`; `[A0; dA]` with an anchor.
        B: Columns of the module's `B`, restricted to the rows of the role; `[dB, B]` with an anchor.
        anchored: Whether `A` and `B` are stacked with an anchor.
        covers_all_rows: Whether `B` keeps all rows of a fused weight, as coupled roles and stock trainers fill them.
        eps: Machine precision of the factors in the file.
    """

    planned: PlannedAdapter
    A: Tensor
    B: Tensor
    anchored: bool
    covers_all_rows: bool
    eps: float

    @property
    def anchor(self) -> tuple[Tensor, Tensor]:
        """Anchor: `A0` (r, in) and `B0` (out, r)."""
        (A0, _), (dB, B) = unstack_A(self.A), unstack_B(self.B)
        return A0, B - dB

    @property
    def deltas(self) -> tuple[Tensor, Tensor]:
        """Trained differences from the anchor: `dA` (r, in) and `dB` (out, r)."""
        return unstack_A(self.A)[1], unstack_B(self.B)[0]

    @property
    def anchor_was_trained(self) -> bool:
        """Whether a stock trainer moved the anchor too; see `anchor.left_grid`."""
        return self.anchored and left_grid(self.B, self.eps)


@dataclass(frozen=True)
class AdapterCheckpoint:
    """Saved LoRA adapter, known from its configuration and header; tensors are read on request.

    Attributes:
        folder: Folder of the adapter.
        config: PEFT's configuration, as plain data.
        modules: Factors by name of the module in the base model.
        saved: Tensors of modules trained whole, by name of the parameter in the base model.
        metadata: Our metadata. None if missing, or of another adapter in a folder above.
    """

    folder: Path
    config: dict[str, Any]
    modules: dict[str, LoraWeights]
    saved: dict[str, StoredTensor]
    metadata: AdapterMetadata | None

    @classmethod
    def open(cls, path: Path | str) -> AdapterCheckpoint:
        """Read and validate the files of an adapter.

        Args:
            path: Folder of an adapter, or of a run with its adapter in `adapter/`.

        Returns:
            The adapter, with consistent files and valid digests.

        Raises:
            InputError: The folder holds no adapter, or no LoRA of linear modules, or its files are damaged or
                contradict each other.
        """
        folder = resolve_adapter_dir(path)
        validate_weights_file(folder)
        config = read_config(folder / CONFIG_NAME)
        header = read_header(folder / WEIGHTS_NAME)
        parts: dict[str, dict[str, StoredTensor]] = {}
        saved: dict[str, StoredTensor] = {}
        # Of a module saved under two names, the plain one comes first and wins below.
        for name, stored in sorted(header.tensors.items(), key=lambda item: ".modules_to_save." in item[0]):
            if not stored.floating:
                raise InputError(f"{stored}: adapters hold floating tensors")
            if 0 in stored.shape:
                raise InputError(f"{stored} is empty: the file is damaged, or of another program")
            bare = name.removeprefix(PREFIX)
            if bare != name and bare in header.tensors:
                raise InputError(f"{stored.file} holds {bare!r} twice, with and without {PREFIX!r} before it")
            end = next((end for end in _PARTS if bare.endswith(f".{end}")), None)
            if end is not None:
                parts.setdefault(bare.removesuffix(f".{end}"), {})[_PARTS[end]] = stored
            elif re.search(r"\.base_layer\.(weight|bias)$", bare):
                continue  # PEFT also saves the frozen weight of adapted embeddings and heads.
            elif ".original_module." in bare:
                continue  # PEFT also saves the original of resized embeddings that are trained whole.
            elif re.search(r"(^|\.)lora_", bare):
                raise InputError(
                    f"{stored.file}: {name!r} is not the factor of a linear module, which is all that is read"
                )
            else:
                # PEFT saves trained embeddings under both names.
                saved.setdefault(bare.replace(".modules_to_save.", "."), stored)
        if not parts:
            raise InputError(f"{folder / WEIGHTS_NAME} holds no LoRA factors")
        ranks, alphas = (
            ModulePatterns(f"{folder / CONFIG_NAME}: {name}") for name in ("rank_pattern", "alpha_pattern")
        )
        modules = {
            module: _lora_weights(module, part, folder, config, ranks=ranks, alphas=alphas)
            for module, part in parts.items()
        }
        _validate_agreement(folder, config, modules, saved)
        adapter = cls(folder, config, modules, saved, None)
        metadata = adapter._matching_metadata()
        # Last: a file that contradicts itself is refused by the name of the tensor.
        validate_digests(folder, header)
        return cls(folder, config, modules, saved, metadata)

    @cached_property
    def plan(self) -> Plan | None:
        """Plan of the adapter. None without metadata."""
        return self.metadata.parsed_plan if self.metadata else None

    @property
    def task_type(self) -> str | None:
        """PEFT's task type. None if the configuration has none."""
        return self.config.get("task_type")

    @property
    def dora(self) -> bool:
        """Whether the adapter is a DoRA."""
        return any(module.magnitude for module in self.modules.values())

    @property
    def exported(self) -> bool:
        """Whether the adapter is an export, without an anchor."""
        return self.metadata is not None and self.metadata.exported is not None

    @property
    def targets_residual_base(self) -> bool:
        """Whether the adapter needs residual weights, as PEFT saves the residual form during training."""
        plan = self.plan
        return plan is not None and plan.form is Form.RESIDUAL and not self.exported and not self.contains_anchor(plan)

    def validate_untouched_base(self) -> None:
        """Refuse an adapter that needs residual weights.

        Raises:
            InputError: PEFT saved the adapter in the residual form, during training.
        """
        if self.targets_residual_base:
            raise InputError(
                f"{self.folder} is in the residual form and belongs on residual weights: save it for the untouched "
                "base first, ailora.save_adapter(ailora.resume(base_model, adapter), folder)"
            )

    @property
    def files(self) -> list[Path]:
        """Files of the adapter: weights, configuration, and metadata if present."""
        metadata = find_metadata_file(self.folder) if self.metadata else None
        files = [self.folder / WEIGHTS_NAME, self.folder / CONFIG_NAME]
        return [*files, metadata] if metadata else files

    @property
    def tensors(self) -> list[StoredTensor]:
        """All tensors of the file that belong to the adapter."""
        factors = [t for module in self.modules.values() for t in (module.A, module.B, module.magnitude) if t]
        return factors + list(self.saved.values())

    def validate_finite(self) -> None:
        """Refuse tensors that no model can be made of.

        Raises:
            InputError: Names the first tensor with NaN or infinite entries.
        """
        for stored in self.tensors:
            if not all_finite(read_tensor(stored)):
                raise InputError(f"{stored} holds NaN or infinite entries")

    def validate_complete(self, base: nn.Module) -> None:
        """Refuse a file with other modules than its configuration adapts or trains whole.

        PEFT loads such files with a warning, or silently without the factors.

        Args:
            base: Base model; its parameters may be on the meta device.

        Raises:
            InputError: The file lacks a module, or has another one. The message names the first.
        """
        linear = find_linear_modules(base)
        if unknown := sorted(self.modules.keys() - linear.keys()):
            raise InputError(
                f"{self.folder / WEIGHTS_NAME} has factors for {pluralize(len(unknown), 'module')} that the base model "
                f"{type(base).__name__} does not have, such as {unknown[0]}"
            )
        self.validate_saved_modules(base)
        targets = find_targets(self.config, linear, self.folder / CONFIG_NAME)
        if targets is None:
            return
        if ignored := sorted(self.modules.keys() - targets):
            raise InputError(
                f"{self.folder / WEIGHTS_NAME} has factors for {pluralize(len(ignored), 'module')} that {CONFIG_NAME} "
                f"does not adapt, such as {ignored[0]}: loaders would leave them out. Correct target_modules, "
                "exclude_modules or layers_to_transform"
            )
        if missing := sorted(targets - self.modules.keys()):
            raise InputError(
                f"{self.folder / WEIGHTS_NAME} has no factors for {pluralize(len(missing), 'module')} that "
                f"{CONFIG_NAME} adapts, such as {missing[0]}: the file is incomplete, or its target_modules are of "
                "another adapter"
            )

    def validate_saved_modules(self, base: nn.Module) -> None:
        """Refuse a file without a module of `modules_to_save`.

        Args:
            base: Base model without an adapter; its parameters may be on the meta device.

        Raises:
            InputError: A parameter is missing. The message names the first.
        """
        names = self.config.get("modules_to_save") or []
        # PEFT compares the ends of names, not whole parts of them.
        ends = tuple([names] if isinstance(names, str) else names)
        for module, part in base.named_modules():
            if not module.endswith(ends):
                continue
            for parameter in part.state_dict():
                if f"{module}.{parameter}" not in self.saved:
                    raise InputError(
                        f"{self.folder / WEIGHTS_NAME} has no {module}.{parameter}, and modules_to_save in "
                        f"{CONFIG_NAME} says that it was trained whole: the file is incomplete"
                    )

    def find_scaling_mismatch(self, plan: Plan) -> tuple[str, float, float] | None:
        """Find a module with different scalings in the configuration and in a plan.

        Returns:
            Name of the module, scaling in the configuration, and scaling in the plan. None if all agree.
        """
        for module, group in plan.modules.items():
            scaling, planned = self.modules[module].scaling, group[0].scaling
            if abs(scaling - planned) > 1e-9 * planned:
                return module, scaling, planned
        return None

    def contains_anchor(self, plan: Plan) -> bool:
        """Return whether the file contains the anchor; PEFT saves the residual form without."""
        return all(
            self.modules[module].rank == sum(planned.file_rank for planned in group)
            for module, group in plan.modules.items()
        )

    def projection_factors(self, plan: Plan) -> Iterator[ProjectionFactors]:
        """Read the factors of every planned adapter, module by module.

        Args:
            plan: Plan of the adapter.

        Yields:
            Factors, with a single module in memory at a time.

        Raises:
            InputError: A factor has NaN, infinite or too large entries.
        """
        stacked = self.contains_anchor(plan)
        for module, group in plan.modules.items():
            weights = self.modules[module]
            A, B = weights.factors()
            eps = max(torch.finfo(stored.torch_dtype).eps for stored in (weights.A, weights.B))
            ranks = [planned.file_rank if stacked else planned.rank for planned in group]
            for planned, rows, columns in zip(group, A.split(ranks, dim=0), B.split(ranks, dim=1), strict=True):
                selected = select_rows(columns, planned.projection)
                # A stock trainer also fills the rows of other roles.
                all_rows = planned.projection.fused and (
                    plan.couple_roles or int(selected.count_nonzero()) < int(columns.count_nonzero())
                )
                anchored = stacked and planned.init.anchored
                yield ProjectionFactors(planned, rows, columns if all_rows else selected, anchored, all_rows, eps)

    def _matching_metadata(self) -> AdapterMetadata | None:
        """Read the metadata in the folder, or in a folder above if they fit.

        Returns:
            The metadata. None if there are none, or those above the folder are of another adapter.

        Raises:
            InputError: The metadata in the folder are invalid, or of another adapter.
        """
        inside = (self.folder / METADATA_NAME).is_file()
        try:
            metadata = find_metadata(self.folder)
        except InputError:
            if inside:
                raise
            return None
        reason = self.mismatch_reason(metadata) if metadata else None
        if reason and inside:
            raise InputError(f"{self.folder / METADATA_NAME} is of another adapter than {WEIGHTS_NAME}: {reason}")
        return None if reason else metadata

    def mismatch_reason(self, metadata: AdapterMetadata) -> str | None:
        """Return the first contradiction between metadata and file, or None."""
        plan = metadata.parsed_plan
        planned = plan.modules
        if planned.keys() != self.modules.keys():
            odd = sorted(planned.keys() ^ self.modules.keys())
            return f"{odd[0]} is in one of them only"
        for module, group in planned.items():
            shape, weights = group[0].projection.shape, self.modules[module]
            if weights.shape != shape:
                return f"{module} maps {shape} there, {weights.shape} here"
            ranks = [sum(p.file_rank for p in group)]
            if plan.form is Form.RESIDUAL:
                ranks.append(sum(p.rank for p in group))
            if metadata.exported is None and weights.rank not in ranks:
                return f"{module} has rank {ranks[0]} there, {weights.rank} here"
        return None


def _validate_agreement(
    folder: Path,
    config: Mapping[str, Any],
    modules: Mapping[str, LoraWeights],
    saved: Mapping[str, StoredTensor],
) -> None:
    """Refuse magnitudes without DoRA, DoRA without magnitudes, and whole weights beside factors."""
    for weights in modules.values():
        if (weights.magnitude is not None) != bool(config.get("use_dora")):
            says = "a DoRA" if config.get("use_dora") else "no DoRA"
            raise InputError(
                f"{folder}: {CONFIG_NAME} says {says}, and the magnitudes of {weights.module} say otherwise"
            )
    for name, stored in saved.items():
        if name.rpartition(".")[0] in modules:
            raise InputError(f"{stored} is the whole of a module that has factors too: loaders would leave it out")


def _lora_weights(
    module: str,
    parts: Mapping[str, StoredTensor],
    folder: Path,
    config: Mapping[str, Any],
    *,
    ranks: ModulePatterns,
    alphas: ModulePatterns,
) -> LoraWeights:
    where = f"{folder / WEIGHTS_NAME}: {module}"
    if "A" not in parts or "B" not in parts:
        raise InputError(f"{where} has no lora_{'A' if 'A' not in parts else 'B'}")
    A, B, magnitude = parts["A"], parts["B"], parts.get("magnitude")
    if len(A.shape) != 2 or len(B.shape) != 2 or A.shape[0] != B.shape[1]:
        raise InputError(f"{where}: lora_A {A.shape} and lora_B {B.shape} are not (r, in) and (out, r)")
    if magnitude is not None and magnitude.shape != B.shape[:1]:
        raise InputError(f"{where}: the magnitudes are {magnitude.shape}, the weight has {B.shape[0]} rows")
    rank = pattern_value("rank_pattern", config, module, ranks)
    alpha = pattern_value("alpha_pattern", config, module, alphas)
    if rank != A.shape[0]:
        raise InputError(f"{where} has rank {A.shape[0]}, {CONFIG_NAME} says {rank}")
    return LoraWeights(module, A, B, magnitude, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
