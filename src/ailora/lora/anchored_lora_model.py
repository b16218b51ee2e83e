"""Subclass of PEFT's `LoraModel` for reference adapters, and for a base model with residual weights."""

from __future__ import annotations

import copy

from peft.tuners.lora import LoraLayer, LoraModel
from torch import Tensor, nn

from ailora.errors import ModelError
from ailora.lora.adapter_name import validate_no_tensor_name
from ailora.lora.base_model import has_merged_adapter
from ailora.lora.packed_factor import PackedFactor
from ailora.plan.adapter_metadata import AdapterMetadata
from ailora.plan.adapter_plan import Form


class AnchoredLoraModel(LoraModel):
    """PEFT's `LoraModel`, in which adapters with the same configuration object start from the same anchors.

    TRL's trainers with a reference model (DPO, KTO, RLOO, GRPO) add an adapter `ref` with the configuration object of
    `default`, then copy every parameter of `default` by name. PEFT's own factors for `ref` would lack the parameter
    `delta` of an anchored factor. Adapters with a separate configuration object, for example from `load_adapter`, keep
    PEFT's factors.

    While the base model has residual weights, this class refuses adapters with a separate configuration object, because
    they would run on weights for which they were not made. It also refuses to delete or unload the last adapter
    in the residual form, because the original weights would be lost. Names of new adapters that would make PEFT save
    incomplete files are refused too.
    """

    #: Metadata of each ailora adapter by adapter name.
    ailora_metadata: dict[str, AdapterMetadata]

    def inject_adapter(  # noqa: PLR0917 (PEFT's signature)
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        try:
            validate_no_tensor_name(self.model, adapter_name)
            if self._find_source(adapter_name) is None:
                self._validate_no_residual("another adapter cannot be added")
            super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)
        except Exception:
            # PEFT's `add_weighted_adapter` leaves the name of a refused adapter in `peft_config`. PEFT would then leave
            # all tensors with this name out of the files of other adapters.
            self.peft_config.pop(adapter_name, None)
            raise
        # The new adapter may have the name of a deleted one, whose metadata do not describe it.
        self.ailora_metadata = {name: data for name, data in self.ailora_metadata.items() if name != adapter_name}
        source = self._find_source(adapter_name)
        # PEFT sets `low_cpu_mem_usage` when it loads the factors from a file afterwards.
        if source is None or low_cpu_mem_usage:
            return
        for layer in model.modules():
            if isinstance(layer, LoraLayer) and source in layer.lora_A:
                for factors in (layer.lora_A, layer.lora_B):
                    _restart_from(factors, source, adapter_name)
        self.ailora_metadata = {**self.ailora_metadata, adapter_name: self.ailora_metadata[source]}

    def delete_adapter(self, adapter_name: str) -> None:
        if self._find_residual_adapters() == [adapter_name]:
            self._validate_no_residual("the adapter cannot be deleted")
        super().delete_adapter(adapter_name)

    def unload(self) -> nn.Module:
        # After merging, the base model has the trained weights instead of the residual weights, so nothing is lost.
        if not has_merged_adapter(self.model):
            self._validate_no_residual("the adapter cannot be unloaded")
        return super().unload()

    def _validate_no_residual(self, problem: str) -> None:
        """Refuse a base model with residual weights.

        Raises:
            ModelError: An adapter in the residual form has changed the weights.
        """
        if names := self._find_residual_adapters():
            raise ModelError(
                f"{problem}: the adapter {names[0]!r} in the residual form has changed the base weights. Call "
                "ailora.restore_base for the original base model, or load the base model again"
            )

    def _find_residual_adapters(self) -> list[str]:
        residual = (name for name, data in self.ailora_metadata.items() if data.parsed_plan.form is Form.RESIDUAL)
        return [name for name in residual if name in self.peft_config]

    def _find_source(self, adapter_name: str) -> str | None:
        """Return the name of the ailora adapter that shares its configuration object with a new adapter, or None."""
        config = self.peft_config[adapter_name]
        shared = (name for name in self.ailora_metadata if self.peft_config.get(name) is config)
        return next((name for name in shared if name != adapter_name), None)


def _restart_from(factors: nn.ModuleDict, source: str, adapter_name: str) -> None:
    """Replace PEFT's factor of a new adapter by a copy of the source's factor, reset to the initial values."""
    source_factor, peft_factor = factors[source], factors[adapter_name]
    if not isinstance(source_factor, PackedFactor):
        return
    assert isinstance(peft_factor, nn.Linear)
    new_factor = copy.deepcopy(source_factor)
    new_factor.zero_grad(set_to_none=True)
    new_factor.restart(peft_factor.weight)
    factors[adapter_name] = new_factor.requires_grad_(peft_factor.weight.requires_grad)
