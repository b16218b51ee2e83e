"""Saved LoRA adapters: PEFT's files and our metadata, validated on opening."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ailora.adapter_io.adapter_digests import validate_digests
from ailora.adapter_io.lora_weights import LoraWeights, find_lora_weights
from ailora.adapter_io.peft_config_file import CONFIG_NAME, WEIGHTS_NAME, read_config, validate_weights_file
from ailora.adapter_io.projection_factors import ProjectionFactors, split_factors
from ailora.errors import InputError
from ailora.path_kind import resolve_adapter_dir
from ailora.plan.adapter_metadata import METADATA_NAME, AdapterMetadata, find_metadata, find_metadata_file
from ailora.plan.adapter_plan import Form, Plan
from ailora.safetensors_io import StoredTensor, read_header, read_tensor
from ailora.weights.base_weight import all_finite


@dataclass(frozen=True)
class AdapterCheckpoint:
    """Saved LoRA adapter. Opening reads the configuration and the header; tensors are read on request.

    Attributes:
        folder: Folder of the adapter.
        config: PEFT's configuration, as plain data.
        modules: LoRA weights by module name in the base model.
        saved: Tensors of fully fine-tuned modules, by parameter name in the base model.
        metadata: Content of `ailora.json` in the folder or a parent folder. None without metadata of this adapter.
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
            path: Folder of an adapter, or folder of a run with the adapter in `adapter/`.

        Returns:
            The adapter, with consistent files and valid digests.

        Raises:
            InputError: The folder holds no adapter, the adapter is not a LoRA of linear modules, or its files are
                damaged or contradict each other.
        """
        folder = resolve_adapter_dir(path)
        validate_weights_file(folder)
        config = read_config(folder / CONFIG_NAME)
        header = read_header(folder / WEIGHTS_NAME)
        modules, saved = find_lora_weights(header, config, folder)
        adapter = cls(folder, config, modules, saved, None)
        adapter = replace(adapter, metadata=adapter._find_metadata())
        # Digests come last, because the checks above name the tensor at fault.
        validate_digests(folder, header)
        return adapter

    @cached_property
    def plan(self) -> Plan | None:
        """Plan of the adapter. None without `ailora.json`."""
        return self.metadata.parsed_plan if self.metadata else None

    @property
    def task_type(self) -> str | None:
        """PEFT's task type. None if the configuration has none."""
        return self.config.get("task_type")

    @property
    def modules_to_save(self) -> tuple[str, ...]:
        """Name suffixes of the fully fine-tuned modules, from the configuration."""
        names = self.config.get("modules_to_save") or ()
        return (names,) if isinstance(names, str) else tuple(names)

    @property
    def dora(self) -> bool:
        """Whether the adapter uses DoRA, and so stores magnitudes."""
        return any(module.magnitude for module in self.modules.values())

    @property
    def exported(self) -> bool:
        """Whether `ailora export` wrote the adapter. Exports have no anchor."""
        return self.metadata is not None and self.metadata.exported is not None

    @property
    def targets_residual_base(self) -> bool:
        """Whether the adapter needs residual weights `W - s B0 A0` in place of the base weights `W`.

        This is the case if PEFT saved the adapter during training in the residual form.
        """
        plan = self.plan
        return plan is not None and plan.form is Form.RESIDUAL and not self.exported and not self.contains_anchor(plan)

    def needs_residual_weight(self, module: str) -> bool:
        """Return whether the adapter needs the residual weight of a module, because the module has an anchor."""
        if self.plan is None or not self.targets_residual_base:
            return False
        return any(planned.init.needs_anchor for planned in self.plan.modules[module])

    def validate_no_residual_base(self) -> None:
        """Refuse an adapter that needs residual weights.

        Raises:
            InputError: PEFT saved the adapter during training in the residual form.
        """
        if self.targets_residual_base:
            raise InputError(
                f"{self.folder} is in the residual form and needs residual weights: convert it to an adapter for the "
                "unchanged base model first, with ailora.save_adapter(ailora.resume(base_model, adapter), folder)"
            )

    @property
    def files(self) -> list[Path]:
        """Files of the adapter: weights, configuration, and metadata if present."""
        metadata = find_metadata_file(self.folder) if self.metadata else None
        files = [self.folder / WEIGHTS_NAME, self.folder / CONFIG_NAME]
        return [*files, metadata] if metadata else files

    @property
    def tensors(self) -> list[StoredTensor]:
        """Stored factors, magnitudes and tensors of fully fine-tuned modules."""
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

    def find_scaling_mismatch(self, plan: Plan) -> tuple[str, float, float] | None:
        """Find the first module with a scaling in the configuration that differs from the plan.

        Returns:
            Name of the module, scaling in the configuration, and scaling in the plan. None if all scalings agree.
        """
        for module, group in plan.modules.items():
            scaling, planned_scaling = self.modules[module].scaling, group[0].scaling
            # Rounding may differ between the two computations of alpha / r.
            if abs(scaling - planned_scaling) > 1e-9 * planned_scaling:
                return module, scaling, planned_scaling
        return None

    def contains_anchor(self, plan: Plan) -> bool:
        """Return whether the file contains all anchors of the plan. True for a plan without anchors.

        PEFT omits the anchors when it saves an adapter in the residual form.
        """
        # With its anchor, an adapter of rank r has the rank 2r in the file: `file_rank` counts both.
        return all(
            self.modules[module].rank == sum(planned.file_rank for planned in group)
            for module, group in plan.modules.items()
        )

    def read_projection_factors(self, plan: Plan) -> Iterator[ProjectionFactors]:
        """Read the factors of every planned adapter, module by module.

        Args:
            plan: Plan of the adapter.

        Yields:
            Factors of a planned adapter, with a single module in memory at a time.

        Raises:
            InputError: A factor has NaN or infinite entries, or entries too large for float64 products.
        """
        stacked = self.contains_anchor(plan)
        for module, adapters in plan.modules.items():
            yield from split_factors(self.modules[module], adapters, stacked=stacked, couple_roles=plan.couple_roles)

    def find_mismatch(self, metadata: AdapterMetadata) -> str | None:
        """Return the first contradiction between metadata and weights file. None if they agree."""
        plan = metadata.parsed_plan
        planned = plan.modules
        if planned.keys() != self.modules.keys():
            unmatched = min(planned.keys() ^ self.modules.keys())
            return f"only one of the two files has the module {unmatched}"
        for module, group in planned.items():
            shape, weights = group[0].projection.shape, self.modules[module]
            if weights.shape != shape:
                return f"{module} has the shape {shape} in {METADATA_NAME}, but {weights.shape} in {WEIGHTS_NAME}"
            allowed_ranks = [sum(p.file_rank for p in group)]
            # PEFT omits the anchors when it saves an adapter in the residual form.
            if plan.form is Form.RESIDUAL:
                allowed_ranks.append(sum(p.rank for p in group))
            # An export may have any rank.
            if metadata.exported is None and weights.rank not in allowed_ranks:
                return f"{module} has rank {allowed_ranks[0]} in {METADATA_NAME}, but {weights.rank} in {WEIGHTS_NAME}"
        return None

    def _find_metadata(self) -> AdapterMetadata | None:
        """Find the metadata of the adapter in its folder or a parent folder.

        Returns:
            The metadata. None without metadata, or if a parent folder holds metadata of a different adapter.

        Raises:
            InputError: The metadata in the adapter's folder are invalid, or do not fit the weights file.
        """
        is_in_folder = (self.folder / METADATA_NAME).is_file()
        try:
            metadata = find_metadata(self.folder)
        except InputError:
            if is_in_folder:
                raise
            return None
        reason = self.find_mismatch(metadata) if metadata else None
        if reason and is_in_folder:
            raise InputError(f"{self.folder / METADATA_NAME} does not belong to {WEIGHTS_NAME}: {reason}")
        return None if reason else metadata
