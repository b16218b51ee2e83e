"""The anchored form: a frozen start and a trained difference, which read and save as one stock LoRA factor.

With `A = A0 + dA` and `B = B0 + dB`, `B A - B0 A0 = [dB, B] [A0; dA]` exactly. The left side is what trains, the right
side is an ordinary LoRA of rank 2r. At the start `dA = dB = 0`, and the product has a zero block against each full one,
so that it is zero in every dtype and kernel.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ailora.errors import AnchorMismatchError, ModelError

#: Two anchors closer than this, relative to their size and beyond their dtype's rounding, are the same start:
#: decompositions on other machines differ by about 1e-5, those of other weights, ranks or policies by about 1.
_SAME_START = 1e-3


class StackedFactor(nn.Module):
    """One factor of an adapter, in place of the `nn.Linear` that PEFT puts there: made of parts, one `weight` outside.

    In a state dict the parts are packed into the one key `weight`, and PEFT's merging code reads `.weight`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(_pack)
        self.register_load_state_dict_pre_hook(_unpack)

    @abstractmethod
    def stack(self) -> Tensor:
        """The whole factor, contiguous, with gradients to what trains."""

    @abstractmethod
    def unpack(self, weight: Tensor) -> dict[str, Tensor]:
        """The entries of a state dict that a whole factor stands for, by key."""

    @abstractmethod
    def require_same_start(self, weight: Tensor, name: str) -> None:
        """Refuse a whole factor that was made for another start.

        Raises:
            AnchorMismatchError: another shape, or another start.
        """

    @property
    def weight(self) -> Tensor:
        """The whole factor, as PEFT's merging code reads it. Writing to it is refused: it is made anew each time."""
        if torch.compiler.is_compiling():
            return self.stack()
        return _StackedWeight.of(self.stack())

    def forward(self, x: Float[Tensor, "*batch in_"]) -> Float[Tensor, "*batch out"]:
        return F.linear(x, self.stack())

    def require_shape(self, weight: Tensor, name: str) -> None:
        """Refuse a factor of another shape.

        Raises:
            AnchorMismatchError: the shapes differ.
        """
        expected = self.stack().shape
        if weight.shape != expected:
            raise AnchorMismatchError(
                f"{name}: the file holds a factor {tuple(weight.shape)}, the adapter has {tuple(expected)}. "
                "It was made with another rank or form; load it under another adapter name."
            )


class AnchoredFactor(StackedFactor):
    """A factor that holds the anchor as a buffer and the difference from it as the parameter `delta`.

    As a parameter the anchor would be woken by PEFT's `requires_grad_` on its parent.
    """

    anchor: Tensor
    delta: nn.Parameter

    def __init__(self, anchor: Tensor) -> None:
        super().__init__()
        self.register_buffer("anchor", anchor.contiguous().clone())
        self.delta = nn.Parameter(torch.zeros_like(self.anchor))

    @abstractmethod
    def unstack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The anchor and the delta inside a factor that `stack` made."""

    def unpack(self, weight: Tensor) -> dict[str, Tensor]:
        anchor, delta = self.unstack(weight.to(self.anchor))
        return {"anchor": anchor.clone(), "delta": delta.to(self.delta.dtype).clone()}

    def require_same_start(self, weight: Tensor, name: str) -> None:
        self.require_shape(weight, name)
        anchor, delta = self.unstack(weight.to(self.anchor))
        size = self.anchor.norm() + 2 * delta.norm()
        eps = max(torch.finfo(dtype).eps for dtype in (weight.dtype, self.anchor.dtype))
        distance = (anchor - self.anchor).norm()
        if not distance <= _SAME_START * self.anchor.norm() + eps * size:
            raise AnchorMismatchError(
                f"{name}: the file was made for another start (its anchor is {distance / self.anchor.norm():.1e} away, "
                "relative to this one's size): another base, policy, rank or an ordinary LoRA. "
                "Load it under another adapter name, or into the base model with PeftModel.from_pretrained."
            )

    def extra_repr(self) -> str:
        return f"anchor={tuple(self.anchor.shape)}, stacked={tuple(self.stack().shape)}"


class AnchoredA(AnchoredFactor):
    """`lora_A`: the anchor `A0` (r, in) above the difference `dA` (r, in)."""

    def stack(self) -> Float[Tensor, "two_r in_"]:
        return torch.cat([self.anchor, self.delta], dim=0)

    def unstack(self, weight: Float[Tensor, "two_r in_"]) -> tuple[Tensor, Tensor]:
        anchor, delta = weight.chunk(2, dim=0)
        return anchor, delta


class AnchoredB(AnchoredFactor):
    """`lora_B`: the difference `dB` (out, r) beside `B = B0 + dB` (out, r).

    `B0` lies on a grid, so that `B - dB`, rounded to the grid, gives it back bit for bit.
    """

    def __init__(self, anchor: Float[Tensor, "out r"]) -> None:
        super().__init__(_snap_to_grid(anchor))

    def stack(self) -> Float[Tensor, "out two_r"]:
        return torch.cat([self.delta, self.anchor + self.delta], dim=1)

    def unstack(self, weight: Float[Tensor, "out two_r"]) -> tuple[Tensor, Tensor]:
        delta, total = weight.chunk(2, dim=1)
        return _snap_to_grid(total - delta), delta


def _snap_to_grid(B: Tensor) -> Tensor:
    """`B` rounded to multiples of a power of two, 2^-19 to 2^-18 of its largest entry.

    Moves a start by less than 1e-5 of its norm and leaves room for `B + dB` with `dB` up to eight times as large: the
    rounding errors of the sum and of the difference in float32 stay below half a step. The threshold between two
    steps lies between grid points, so that a recovered `B0` finds the step that it was put on.
    """
    largest = B.abs().max()
    if largest == 0 or not torch.isfinite(largest):
        return B
    exponent = torch.frexp(largest.double() * (1 + 2.0**-21)).exponent
    step = torch.ldexp(torch.ones((), dtype=torch.float64, device=B.device), exponent - 19)
    return ((B.double() / step).round() * step).to(B.dtype)


def _pack(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    assert isinstance(module, StackedFactor)
    for key in [key for key in state_dict if key.startswith(prefix)]:
        del state_dict[key]
    state_dict[prefix + "weight"] = module.stack().detach()


def _unpack(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    *_: Any,
) -> None:
    assert isinstance(module, StackedFactor)
    weight = state_dict.pop(prefix + "weight", None)
    if weight is None:
        return
    module.require_same_start(weight, prefix.removesuffix("."))
    state_dict.update({prefix + key: value for key, value in module.unpack(weight).items()})


def require_same_starts(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A load hook for a whole model: compare every anchor before the first one is loaded.

    Raises:
        AnchorMismatchError: as `StackedFactor.require_same_start`, for the first module that differs.
    """
    for name, module in model.named_modules():
        weight = state_dict.get(f"{prefix}{name}.weight")
        if isinstance(module, StackedFactor) and weight is not None:
            module.require_same_start(weight, f"{prefix}{name}")


class _StackedWeight(Tensor):
    """A stacked factor that refuses to be written to.

    Code that swaps adapters writes into `lora_A.weight.data` (PEFT's hot-swap). The stack is a temporary: without
    this the write would vanish in silence. Results of reading it are ordinary tensors.
    """

    _self_reference: weakref.ref[Tensor]

    @classmethod
    def of(cls, stack: Tensor) -> _StackedWeight:
        weight = stack.as_subclass(cls)
        # torch.utils.swap_tensors refuses a tensor that has weak references: it would replace only the temporary.
        weight._self_reference = weakref.ref(weight)
        return weight

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.__name__
        writes = name in ("__set__", "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__") or (
            name.endswith("_") and not name.endswith("__")
        )
        target = args[0] if args else (kwargs or {}).get("tensor")
        if writes and isinstance(target, cls):
            raise ModelError(
                "an anchored factor cannot be written through `.weight`: it is made of a frozen anchor and a trained "
                "difference. Hot-swap into a model that was loaded with PeftModel.from_pretrained, or load the new "
                "adapter beside this one with load_adapter."
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            plain = result.as_subclass(Tensor) if isinstance(result, cls) else result
            reads_data = name == "__get__" and func == Tensor.data.__get__  # type: ignore[attr-defined]
        return cls.of(plain) if reads_data else plain
