"""The models of an analysis, the base and what was made of it, read one matrix or a few rows at a time."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import ClassVar, Protocol

from torch import Tensor, nn

from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint, LoraWeights, ProjectionFactors
from ailora.analysis.weight_update import Dense, Product, Update
from ailora.checkpoints.merge_adapter import validate_base
from ailora.errors import InputError, ModelError
from ailora.roles import Projection
from ailora.safetensors_io import StoredTensor, read_rows, read_tensor
from ailora.weights.base_weight import READABLE, all_finite, base_layer, is_stored_transposed, select_rows

#: Bytes of factors that are kept between blocks of rows, however many layers there are.
_KEPT = 256 * 2**20


class Compared(Protocol):
    """One model of an analysis, seen through the modules of the base.

    Attributes:
        name: as tables and pictures call it; the base is `base`.
        notes: what of it is not shown, and why.
    """

    name: str
    notes: list[str]

    def holds(self, module: str) -> bool:
        """Whether it has a weight of its own for a module of the base."""
        ...

    def stored_rows(self, module: str, start: int, stop: int) -> Tensor:
        """Rows of a weight as the checkpoint stores it: (out, in), or (in, out) where the layer is transposed."""
        ...


class After(Compared, Protocol):
    """A model that was made of the base.

    Attributes:
        kind: `full` or `adapter`.
    """

    kind: ClassVar[str]

    def validate_made_for(self, module: str, weight: Tensor) -> None:
        """Refuse a base weight, as it is stored, that it is known not to be made from.

        Raises:
            ModelError: its fingerprint is another one.
        """
        ...

    def update(self, projection: Projection, weight: Tensor) -> Update:
        """What was added to a projection, given the whole weight (out, in) of its module in the base.

        Raises:
            InputError: NaN or infinite entries.
        """
        ...

    def moved(self, projection: Projection) -> ProjectionFactors | None:
        """What the file of an adapter holds of a projection, where it has an anchor."""
        ...


class Base:
    """The base model: the projections that are looked at, and where their weights lie."""

    def __init__(self, model: nn.Module, projections: tuple[Projection, ...], stored: dict[str, StoredTensor]) -> None:
        self.name = "base"
        self.notes: list[str] = []
        self.model = model
        self.projections = projections
        self.stored = stored
        for module, tensor in stored.items():
            shape = next(p.shape for p in projections if p.module == module)
            if tensor.shape != (shape[::-1] if self.transposed(module) else shape):
                raise ModelError(f"{tensor}: the module {module} maps {shape}")
            _validate_readable(tensor)

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules of the projections, in the model's order."""
        return tuple(self.stored)

    def roles(self, module: str) -> tuple[Projection, ...]:
        """The projections of a module: one, or some of those of a fused weight."""
        return tuple(p for p in self.projections if p.module == module)

    def transposed(self, module: str) -> bool:
        """Whether the checkpoint holds the weight as (in, out)."""
        return is_stored_transposed(base_layer(self.model, module))

    def holds(self, module: str) -> bool:
        return module in self.stored

    def read(self, module: str) -> Tensor:
        """A whole weight as it is stored.

        Raises:
            InputError: NaN or infinite entries.
        """
        return _finite(self.stored[module])

    def stored_rows(self, module: str, start: int, stop: int) -> Tensor:
        return read_rows(self.stored[module], start, stop)


class Full:
    """A model that was trained whole: `dW = W_after - W_before`."""

    kind: ClassVar[str] = "full"

    def __init__(self, name: str, base: Base, stored: dict[str, StoredTensor]) -> None:
        self.name = name
        self.notes: list[str] = []
        self._base = base
        self._stored = stored
        for module, tensor in stored.items():
            if tensor.shape != base.stored[module].shape:
                raise InputError(f"{name} does not fit the base: {tensor}, where the base has {base.stored[module]}")
            _validate_readable(tensor)

    def holds(self, module: str) -> bool:
        return module in self._stored

    def stored_rows(self, module: str, start: int, stop: int) -> Tensor:
        return read_rows(self._stored[module], start, stop)

    def update(self, projection: Projection, weight: Tensor) -> Update:
        after = _finite(self._stored[projection.module])
        after = after.T if self._base.transposed(projection.module) else after
        return Dense(select_rows(after, projection).double() - select_rows(weight, projection).double())

    def moved(self, projection: Projection) -> ProjectionFactors | None:
        return None

    def validate_made_for(self, module: str, weight: Tensor) -> None:
        """A model does not say what it was made from."""


class Adapted:
    """The base with an adapter, which is not merged: `dW = s B A`, exactly."""

    kind: ClassVar[str] = "adapter"

    def __init__(self, name: str, base: Base, filed: AdapterCheckpoint, modules: dict[str, LoraWeights]) -> None:
        self.name = name
        self.notes: list[str] = []
        self.filed = filed
        self._base = base
        self._modules = modules
        largest = max((found.A.size + found.B.size for found in modules.values()), default=1)
        self._factors = lru_cache(maxsize=max(1, _KEPT // (2 * largest)))(self._read_factors)

    def holds(self, module: str) -> bool:
        return module in self._modules

    def stored_rows(self, module: str, start: int, stop: int) -> Tensor:
        base = self._base.stored_rows(module, start, stop)
        A, B = self._factors(module)
        left, right = (A.mT, B.mT) if self._base.transposed(module) else (B, A)
        return base.double() + left[start:stop].double() @ right.double()

    def update(self, projection: Projection, weight: Tensor) -> Update:
        A, B = self._factors(projection.module)
        return Product(select_rows(B, projection).double(), A.double())

    def moved(self, projection: Projection) -> ProjectionFactors | None:
        plan = self.filed.plan
        if plan is None or self.filed.exported:
            return None
        own = self._modules[projection.module].module
        roles = self.filed.projection_factors(replace(plan, adapters=plan.modules[own]))
        return next((r for r in roles if r.planned.projection.role is projection.role and r.anchored), None)

    def validate_made_for(self, module: str, weight: Tensor) -> None:
        validate_base(self.filed, self._modules[module].module, weight)

    def _read_factors(self, module: str) -> tuple[Tensor, Tensor]:
        A, B = self._modules[module].factors()
        return A, B * self._modules[module].scaling


def _validate_readable(stored: StoredTensor) -> None:
    if stored.torch_dtype not in READABLE:
        raise ModelError(f"{stored} is quantized: analyse the unquantized checkpoint")


def _finite(stored: StoredTensor) -> Tensor:
    tensor = read_tensor(stored)
    if not all_finite(tensor):
        raise InputError(f"{stored} holds NaN or infinite entries")
    return tensor
