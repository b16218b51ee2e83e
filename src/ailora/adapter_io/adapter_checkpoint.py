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
    find_pattern_value,
    find_targets,
    read_config,
    validate_weights_file,
)
from ailora.errors import InputError
from ailora.formatting import pluralize
from ailora.lora.anchor import is_off_grid, unstack_A, unstack_B
from ailora.module_pattern import ModulePatterns
from ailora.path_kind import resolve_adapter_dir
from ailora.plan.adapter_metadata import METADATA_NAME, AdapterMetadata, find_metadata, find_metadata_file
from ailora.plan.adapter_plan import Form, Plan, PlannedAdapter
from ailora.roles import find_linear_modules
from ailora.safetensors_io import StoredTensor, read_header, read_tensor
from ailora.weights.base_weight import all_finite, select_rows

#: Prefix that PEFT puts before the names of the base model's modules.
PREFIX = "base_model.model."
#: Suffixes of tensor names in the file, and the part of a linear module's LoRA that each denotes.
_PARTS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
#: Largest entry whose products, and their norms, stay within float64.
_MAX_FLOAT64_ENTRY = 1e100


def add_prefix(name: str) -> str:
    """Return the name of a tensor with PEFT's prefix, which some files omit."""
    return PREFIX + name.removeprefix(PREFIX)


@dataclass(frozen=True)
class LoraWeights:
    """Location of a module's LoRA in a file.

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


@dataclass(frozen=True)
class ProjectionFactors:
    """Factors of a planned adapter: its part of the factors in the file.

    Attributes:
        planned: Settings of the adapter.
        A: The adapter's rows of the module's `A`; `[A0; dA]` with an anchor.
        B: The adapter's columns of the module's `B`, restricted to the rows of the role; `[dB, B]` with an anchor.
        anchored: Whether `A` and `B` contain an anchor.
        covers_all_rows: Whether `B` keeps all rows of a fused weight, because roles are coupled or training without
            ailora has filled them.
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
        """Whether training without ailora has changed the anchor too; see `anchor.is_off_grid`."""
        return self.anchored and is_off_grid(self.B, self.eps)


@dataclass(frozen=True)
class AdapterCheckpoint:
    """Saved LoRA adapter, opened by its configuration and header; tensors are read on request.

    Attributes:
        folder: Folder of the adapter.
        config: PEFT's configuration, as plain data.
        modules: Location of the factors, by name of the module in the base model.
        saved: Tensors of modules trained in full, by name of the parameter in the base model.
        metadata: Content of `ailora.json`. None if neither the folder nor a parent folder has it for this adapter.
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
            path: Folder of an adapter, or of a run, whose adapter is in `adapter/`.

        Returns:
            The adapter, with consistent files and valid digests.

        Raises:
            InputError: The folder holds no adapter, the adapter is no LoRA of linear modules, or its files are damaged
                or contradict each other.
        """
        folder = resolve_adapter_dir(path)
        validate_weights_file(folder)
        config = read_config(folder / CONFIG_NAME)
        header = read_header(folder / WEIGHTS_NAME)
        parts: dict[str, dict[str, StoredTensor]] = {}
        saved: dict[str, StoredTensor] = {}
        # PEFT saves trained embeddings under two names. Plain names are sorted first, so that `setdefault` keeps them.
        for name, stored in sorted(header.tensors.items(), key=lambda item: ".modules_to_save." in item[0]):
            if not stored.floating:
                raise InputError(f"{stored}: the tensors of an adapter must be floating-point")
            if 0 in stored.shape:
                raise InputError(f"{stored} is empty: the file is damaged, or not from PEFT")
            bare = name.removeprefix(PREFIX)
            if bare != name and bare in header.tensors:
                raise InputError(f"{stored.file} holds {bare!r} twice, with and without the prefix {PREFIX!r}")
            end = next((end for end in _PARTS if bare.endswith(f".{end}")), None)
            if end is not None:
                parts.setdefault(bare.removesuffix(f".{end}"), {})[_PARTS[end]] = stored
            elif re.search(r"\.base_layer\.(weight|bias)$", bare):
                continue  # PEFT also saves the frozen weight of adapted embeddings and heads.
            elif ".original_module." in bare:
                continue  # PEFT also saves the original of resized embeddings that are trained in full.
            elif re.search(r"(^|\.)lora_", bare):
                raise InputError(
                    f"{stored.file}: {name!r} is not the factor of a linear module; other LoRA layers are not supported"
                )
            else:
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
        # Digests come last, because the checks above name the tensor at fault.
        validate_digests(folder, header)
        return cls(folder, config, modules, saved, metadata)

    @cached_property
    def plan(self) -> Plan | None:
        """Plan of the adapter. None without `ailora.json`."""
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
        """Whether the adapter needs residual weights, because PEFT saved it in the residual form during training."""
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
                "base first, with ailora.save_adapter(ailora.resume(base_model, adapter), folder)"
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
        """Refuse an adapter with NaN or infinite entries.

        Raises:
            InputError: A tensor has NaN or infinite entries. The message names the first.
        """
        for stored in self.tensors:
            if not all_finite(read_tensor(stored)):
                raise InputError(f"{stored} holds NaN or infinite entries")

    def validate_complete(self, base: nn.Module) -> None:
        """Refuse a file whose modules differ from those that its configuration adapts or trains in full.

        PEFT loads such a file with a warning, or silently ignores some factors.

        Args:
            base: Base model; its parameters may be on the meta device.

        Raises:
            InputError: The file lacks a module, or has an additional one. The message names the first.
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
                f"does not adapt, such as {ignored[0]}: loaders would ignore them. Correct target_modules, "
                "exclude_modules or layers_to_transform"
            )
        if missing := sorted(targets - self.modules.keys()):
            raise InputError(
                f"{self.folder / WEIGHTS_NAME} has no factors for {pluralize(len(missing), 'module')} that "
                f"{CONFIG_NAME} adapts, such as {missing[0]}: the file is incomplete, or {CONFIG_NAME} belongs to "
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
        # PEFT compares the ends of names, not whole parts between dots.
        ends = tuple([names] if isinstance(names, str) else names)
        for module, part in base.named_modules():
            if not module.endswith(ends):
                continue
            for parameter in part.state_dict():
                if f"{module}.{parameter}" not in self.saved:
                    raise InputError(
                        f"{self.folder / WEIGHTS_NAME} has no {module}.{parameter}, which {CONFIG_NAME} lists in "
                        "modules_to_save: the file is incomplete"
                    )

    def find_scaling_mismatch(self, plan: Plan) -> tuple[str, float, float] | None:
        """Find a module whose scaling in the configuration differs from its scaling in a plan.

        Returns:
            Name of the module, scaling in the configuration, and scaling in the plan. None if all agree.
        """
        for module, group in plan.modules.items():
            scaling, planned = self.modules[module].scaling, group[0].scaling
            if abs(scaling - planned) > 1e-9 * planned:
                return module, scaling, planned
        return None

    def contains_anchor(self, plan: Plan) -> bool:
        """Return whether the file contains the anchor, which PEFT omits when it saves the residual form."""
        return all(
            self.modules[module].rank == sum(planned.file_rank for planned in group)
            for module, group in plan.modules.items()
        )

    def projection_factors(self, plan: Plan) -> Iterator[ProjectionFactors]:
        """Read the factors of every planned adapter, module by module.

        Args:
            plan: Plan of the adapter.

        Yields:
            Factors of an adapter; a single module is in memory at a time.

        Raises:
            InputError: A factor has NaN or infinite entries, or entries too large for float64 products.
        """
        stacked = self.contains_anchor(plan)
        for module, group in plan.modules.items():
            weights = self.modules[module]
            A, B = weights.factors()
            eps = max(torch.finfo(stored.torch_dtype).eps for stored in (weights.A, weights.B))
            ranks = [planned.file_rank if stacked else planned.rank for planned in group]
            for planned, rows, columns in zip(group, A.split(ranks, dim=0), B.split(ranks, dim=1), strict=True):
                selected = select_rows(columns, planned.projection)
                # Training without ailora also fills the rows of other roles.
                all_rows = planned.projection.fused and (
                    plan.couple_roles or int(selected.count_nonzero()) < int(columns.count_nonzero())
                )
                anchored = stacked and planned.init.anchored
                yield ProjectionFactors(planned, rows, columns if all_rows else selected, anchored, all_rows, eps)

    def _matching_metadata(self) -> AdapterMetadata | None:
        """Read the metadata in the folder, or those in a parent folder if they belong to this adapter.

        Returns:
            The metadata. None without metadata, or if those in a parent folder do not belong to this adapter.

        Raises:
            InputError: The metadata in the folder are invalid, or do not belong to this adapter.
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
            raise InputError(f"{self.folder / METADATA_NAME} does not belong to {WEIGHTS_NAME}: {reason}")
        return None if reason else metadata

    def mismatch_reason(self, metadata: AdapterMetadata) -> str | None:
        """Return the first contradiction between metadata and weights file. None if there is none."""
        plan = metadata.parsed_plan
        planned = plan.modules
        if planned.keys() != self.modules.keys():
            unmatched = min(planned.keys() ^ self.modules.keys())
            return f"only one of the two files has the module {unmatched}"
        for module, group in planned.items():
            shape, weights = group[0].projection.shape, self.modules[module]
            if weights.shape != shape:
                return f"{module} has the shape {shape} in {METADATA_NAME}, {weights.shape} in {WEIGHTS_NAME}"
            ranks = [sum(p.file_rank for p in group)]
            if plan.form is Form.RESIDUAL:
                ranks.append(sum(p.rank for p in group))
            if metadata.exported is None and weights.rank not in ranks:
                return f"{module} has rank {ranks[0]} in {METADATA_NAME}, {weights.rank} in {WEIGHTS_NAME}"
        return None


def _validate_agreement(
    folder: Path,
    config: Mapping[str, Any],
    modules: Mapping[str, LoraWeights],
    saved: Mapping[str, StoredTensor],
) -> None:
    """Refuse magnitudes without DoRA, DoRA without magnitudes, and modules with both factors and a full weight."""
    for weights in modules.values():
        if (weights.magnitude is not None) != bool(config.get("use_dora")):
            has = "has no" if config.get("use_dora") else "has"
            raise InputError(
                f"{folder}: use_dora is {bool(config.get('use_dora'))} in {CONFIG_NAME}, but {weights.module} {has} "
                f"magnitudes in {WEIGHTS_NAME}"
            )
    for name, stored in saved.items():
        if name.rpartition(".")[0] in modules:
            raise InputError(f"{stored} is the full weight of a module with LoRA factors: loaders would ignore it")


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
        raise InputError(f"{where}: expected magnitudes of shape {B.shape[:1]}, got {magnitude.shape}")
    rank = find_pattern_value("rank_pattern", config, module, ranks)
    alpha = find_pattern_value("alpha_pattern", config, module, alphas)
    if rank != A.shape[0]:
        raise InputError(f"{where} has rank {A.shape[0]}, {CONFIG_NAME} says {rank}")
    return LoraWeights(module, A, B, magnitude, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
