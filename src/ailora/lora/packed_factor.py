"""Factors of an adapter, stored in parts and presented to PEFT and to files as one `weight`."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ailora.errors import AnchorMismatchError, ModelError
from ailora.weights.dtensor import full_tensor, replicate_on_mesh_of


class PackedFactor(nn.Module):
    """Factor of an adapter in place of PEFT's `nn.Linear`, stored in parts and presented as one `weight`.

    In a state dict the parts are packed into the one key `weight`, and PEFT's merging code reads `.weight`. Under
    FSDP2 the parts are DTensors outside of a forward pass: reading `weight` and `state_dict` are then collective.
    """

    def __init__(self) -> None:
        super().__init__()
        self.key_stand_in = _KeyStandIn()
        self.register_state_dict_post_hook(_pack)
        self.register_load_state_dict_pre_hook(_unpack)

    def _fqn_modifiers(self) -> dict[str, str]:
        """Return the module in which torch.distributed.checkpoint looks for the packed key."""
        return {"weight": "key_stand_in"}

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Shape of the whole factor."""

    @abstractmethod
    def stack(self) -> Tensor:
        """Return the whole factor, a plain contiguous tensor with gradients to the trainable parts."""

    @abstractmethod
    def unpack(self, weight: Tensor) -> dict[str, Tensor]:
        """Split a whole factor into the entries of a state dict, by key."""

    @abstractmethod
    def restart(self, weight: Tensor) -> None:
        """Reset the trainable parts to their initial values.

        Args:
            weight: Whole factor as PEFT initializes it, for parts without an anchor.
        """

    @abstractmethod
    def validate_same_anchor(self, weight: Tensor, name: str) -> None:
        """Refuse a whole factor of another anchor.

        Raises:
            AnchorMismatchError: The shape or the anchor differs.
        """

    @property
    def file_shape(self) -> tuple[int, int]:
        """Shape of the factor in the file."""
        return self.shape

    def to_file(self) -> Tensor:
        """Return the factor of the file, detached."""
        return self.stack().detach()

    def from_file(self, weight: Tensor) -> Tensor:
        """Convert a factor of the file to the whole factor, the inverse of `to_file`."""
        return weight

    @property
    def weight(self) -> Tensor:
        """Whole factor for PEFT's merging code, computed at each access and read-only."""
        if torch.compiler.is_compiling():
            return self.stack()
        stack = self.stack()
        weight = replicate_on_mesh_of(stack, self.parameters())
        return _PackedWeight.of(stack) if weight is stack else weight

    def forward(self, x: Float[Tensor, "*batch in_"]) -> Float[Tensor, "*batch out"]:
        return F.linear(x, self.stack())

    def validate_shape(self, weight: Tensor, name: str) -> None:
        """Refuse a factor of another shape.

        Raises:
            AnchorMismatchError: The shapes differ.
        """
        if tuple(weight.shape) != self.shape:
            raise AnchorMismatchError(
                f"{name}: the file holds a factor {tuple(weight.shape)}, the adapter has {self.shape}. "
                "It was made with another rank or form; load it under another adapter name."
            )


class _KeyStandIn(nn.Module):
    """Stand in for the key `weight` where a loader asks for buffers and parameters and not for the state dict.

    `torch.distributed.checkpoint` hands a full state dict only to the keys that it finds that way. It writes nothing
    into this buffer; a scalar, as it looks at the devices of all others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(()))


def _pack(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, _metadata: dict[str, object]) -> None:
    assert isinstance(module, PackedFactor)
    for key in [key for key in state_dict if key.startswith(prefix)]:
        del state_dict[key]
    state_dict[prefix + "weight"] = replicate_on_mesh_of(module.stack().detach(), module.parameters())


def _unpack(
    module: nn.Module,
    state_dict: dict[str, Tensor],
    prefix: str,
    *_: object,
) -> None:
    assert isinstance(module, PackedFactor)
    weight = _factor_in(state_dict, prefix)
    state_dict.pop(prefix + "weight", None)
    if weight is None:
        return
    module.validate_same_anchor(weight, prefix.removesuffix("."))
    state_dict.update({prefix + key: value for key, value in module.unpack(weight).items()})
    state_dict[prefix + "key_stand_in.weight"] = torch.zeros((), device=weight.device)


def validate_same_anchors(model: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Compare every anchor of a model before the first one is loaded; a load hook.

    Raises:
        AnchorMismatchError: A module has another anchor; see `PackedFactor.validate_same_anchor`.
    """
    for name, module in model.named_modules():
        if not isinstance(module, PackedFactor):
            continue
        weight = _factor_in(state_dict, f"{prefix}{name}.")
        if weight is not None:
            module.validate_same_anchor(weight, f"{prefix}{name}")


def _factor_in(state_dict: dict[str, Tensor], prefix: str) -> Tensor | None:
    """Return the whole factor in a state dict, or None for a missing key or the scalar of `_KeyStandIn`."""
    weight = state_dict.get(prefix + "weight")
    return None if weight is None or weight.ndim == 0 else full_tensor(weight)


class _PackedWeight(Tensor):
    """Stacked factor, read-only.

    Code that swaps adapters writes into `lora_A.weight.data` (PEFT's hot-swap). The stack is a temporary: without
    this the write would vanish silently. Results of reading it are ordinary tensors.
    """

    _self_reference: weakref.ref[Tensor]

    @classmethod
    def of(cls, stack: Tensor) -> _PackedWeight:
        weight = stack.as_subclass(cls)
        # torch.utils.swap_tensors refuses a tensor that has weak references: it would replace only the temporary.
        weight._self_reference = weakref.ref(weight)
        return weight

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
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
        return cls.of(plain) if reads_data and isinstance(plain, Tensor) else plain
