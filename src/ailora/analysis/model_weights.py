"""Weights of analysed models, read as whole matrices or in blocks of rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import ClassVar

from torch import Tensor, nn

from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint
from ailora.adapter_io.lora_weights import LoraWeights
from ailora.adapter_io.projection_factors import ProjectionFactors
from ailora.analysis.weight_update import DenseUpdate, LowRankUpdate, WeightUpdate
from ailora.checkpoints.merge_adapter import validate_base
from ailora.errors import InputError, ModelError
from ailora.roles import Projection
from ailora.safetensors_io import StoredTensor, read_rows, read_tensor
from ailora.weights.base_weight import READABLE, all_finite, base_layer, is_stored_transposed, select_rows

#: Name of the base in tables and charts.
BASE_NAME = "base"
#: Bytes of factors that are kept in memory between blocks of rows, for all layers together.
_FACTOR_CACHE_BYTES = 256 * 2**20


class ModelWeights:
    """Stored weights of a model, by module name in the base.

    Attributes:
        name: Name of the model in tables and charts, `base` for the base.
        stored: Module -> weight in the checkpoint.
        notes: Sentences for users about parts of the model that are left out or unknown.
    """

    def __init__(self, name: str, stored: dict[str, StoredTensor]) -> None:
        self.name = name
        self.stored = stored
        self.notes: list[str] = []
        for tensor in stored.values():
            if tensor.torch_dtype not in READABLE:
                raise ModelError(f"{tensor} is quantized: analyse the unquantized checkpoint")

    def has_weight(self, module: str) -> bool:
        """Return whether the model has a weight for a module of the base."""
        return module in self.stored

    def read_stored_rows(self, module: str, start: int, stop: int) -> Tensor:
        """Read rows `start` to `stop` of a stored weight: (out, in), or (in, out) for transposed layers."""
        return read_rows(self.stored[module], start, stop)

    def read(self, module: str) -> Tensor:
        """Read a whole stored weight: (out, in), or (in, out) for transposed layers.

        Raises:
            InputError: The weight has NaN or infinite entries.
        """
        tensor = read_tensor(self.stored[module])
        if not all_finite(tensor):
            raise InputError(f"{self.stored[module]} holds NaN or infinite entries")
        return tensor


class BaseWeights(ModelWeights):
    """Weights of the base model.

    Attributes:
        path: Folder or hub id given by the user.
        model: Model on the meta device.
        projections: Projections to analyse.
        role_names: Regular expression -> role, for modules without a naming rule. None without such modules.
    """

    def __init__(
        self,
        path: str,
        model: nn.Module,
        projections: tuple[Projection, ...],
        stored: dict[str, StoredTensor],
        *,
        role_names: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(BASE_NAME, stored)
        self.path = path
        self.model = model
        self.projections = projections
        self.role_names = role_names
        for module, tensor in stored.items():
            shape = self.module_shape(module)
            # `shape` follows from the configuration, which may contradict the file.
            if tensor.shape != (shape[::-1] if self.is_transposed(module) else shape):
                raise ModelError(f"{tensor}: the configuration gives the module {module} the shape {shape}")

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules with a projection, in the order of the model."""
        return tuple(self.stored)

    def module_projections(self, module: str) -> tuple[Projection, ...]:
        """Return the projections of a module. A fused weight has several."""
        return tuple(p for p in self.projections if p.module == module)

    def module_shape(self, module: str) -> tuple[int, int]:
        """Return the shape (out, in) of a module's weight."""
        return next(p.shape for p in self.projections if p.module == module)

    def is_transposed(self, module: str) -> bool:
        """Return whether the checkpoint stores the weight as (in, out)."""
        return is_stored_transposed(base_layer(self.model, module))


class FinetunedModel(ModelWeights, ABC):
    """Weights of a model fine-tuned from the base.

    Attributes:
        kind: `full` or `adapter`.
        gradients: Module -> gradient (out, in) of the training loss at the base weights. Empty if unknown.
    """

    kind: ClassVar[str]

    def __init__(self, name: str, stored: dict[str, StoredTensor]) -> None:
        super().__init__(name, stored)
        self.gradients: Mapping[str, Tensor] = {}

    def initial_gradient(self, projection: Projection) -> WeightUpdate | None:
        """Return the gradient of the training loss for a projection before training, or None if it is unknown."""
        gradient = self.gradients.get(projection.module)
        return None if gradient is None else DenseUpdate(select_rows(gradient, projection).double())

    @abstractmethod
    def update(self, projection: Projection, weight: Tensor, /) -> WeightUpdate:
        """Return the update of a projection.

        Args:
            projection: Projection of the base.
            weight: Whole base weight (out, in) of the projection's module.

        Returns:
            Update `dW` of the projection's rows.

        Raises:
            InputError: The fine-tuned weight has NaN or infinite entries.
        """

    def validate_base_weight(self, module: str, weight: Tensor) -> None:
        """Refuse a stored base weight if its fingerprint differs from the fingerprint in the model's metadata.

        Models without metadata accept every weight.

        Raises:
            ModelError: The fingerprints differ.
        """

    def anchored_factors(self, projection: Projection) -> ProjectionFactors | None:
        """Return the factors of a projection in an anchored adapter, or None for a model without an anchor."""


class FullModel(FinetunedModel):
    """Weights of a fully fine-tuned model: `dW = W_after - W_before`."""

    kind: ClassVar[str] = "full"

    def __init__(self, name: str, base: BaseWeights, stored: dict[str, StoredTensor]) -> None:
        super().__init__(name, stored)
        self._base = base
        for module, tensor in stored.items():
            if tensor.shape != base.stored[module].shape:
                raise InputError(f"{name} does not fit the base: expected {base.stored[module]}, got {tensor}")

    def update(self, projection: Projection, weight: Tensor, /) -> WeightUpdate:
        stored = self.read(projection.module)
        trained = stored.T if self._base.is_transposed(projection.module) else stored
        return DenseUpdate(select_rows(trained, projection).double() - select_rows(weight, projection).double())


class AdaptedModel(FinetunedModel):
    """Weights of the base with an adapter: `dW = s B A`. The update has no rounding from merging.

    Args:
        name: Name of the model in tables and charts.
        base: Base model.
        checkpoint: Adapter.
        modules: Module name in the base -> LoRA weights. Their `module` may be a different name, because it is the name
            in the model class for the adapter's task.
    """

    kind: ClassVar[str] = "adapter"

    def __init__(
        self, name: str, base: BaseWeights, checkpoint: AdapterCheckpoint, modules: dict[str, LoraWeights]
    ) -> None:
        super().__init__(name, {})
        self.checkpoint = checkpoint
        self._base = base
        self._lora_weights = modules
        # Consecutive blocks of rows need the same factors. The cache is limited, because the factors of all layers may
        # not fit into memory. Factors stored in 16 bits are read as float32, in twice as many bytes.
        largest = max((lora.A.nbytes + lora.B.nbytes for lora in modules.values()), default=1)
        self._factors = lru_cache(maxsize=max(1, _FACTOR_CACHE_BYTES // (2 * largest)))(self._read_factors)

    def has_weight(self, module: str) -> bool:
        return module in self._lora_weights

    def read_stored_rows(self, module: str, start: int, stop: int) -> Tensor:
        base = self._base.read_stored_rows(module, start, stop)
        A, B = self._factors(module)
        left, right = (A.mT, B.mT) if self._base.is_transposed(module) else (B, A)
        return base.double() + left[start:stop].double() @ right.double()

    def update(self, projection: Projection, _weight: Tensor, /) -> WeightUpdate:
        A, B = self._factors(projection.module)
        return LowRankUpdate(select_rows(B, projection).double(), A.double())

    def anchored_factors(self, projection: Projection) -> ProjectionFactors | None:
        plan = self.checkpoint.plan
        if plan is None or self.checkpoint.exported:
            return None
        module = self._lora_weights[projection.module].module
        # Restrict the plan to this module, so that only the factors of this module are read.
        module_plan = replace(plan, adapters=plan.modules[module])
        factors = self.checkpoint.read_projection_factors(module_plan)
        return next((f for f in factors if f.planned.projection.role is projection.role and f.has_anchor), None)

    def validate_base_weight(self, module: str, weight: Tensor) -> None:
        validate_base(self.checkpoint, self._lora_weights[module].module, weight)

    def _read_factors(self, module: str) -> tuple[Tensor, Tensor]:
        """Return `A` (r, in) and `s B` (out, r)."""
        lora = self._lora_weights[module]
        A, B = lora.read_factors()
        return A, B * lora.scaling
