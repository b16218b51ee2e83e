"""LoRA factors that consist of several tensors, packed into a single `weight` for PEFT and for files."""

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
    """LoRA factor that replaces PEFT's `nn.Linear`, and consists of several tensors: its parts.

    State dicts contain the packed factor under the key `weight`, and PEFT's merging code reads the property `weight`.
    Under FSDP2, reading `weight` and calling `state_dict` are collective operations, because the parts are DTensors
    outside the forward pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.key_stand_in = _KeyStandIn()
        self.register_state_dict_post_hook(_pack)
        self.register_load_state_dict_pre_hook(_unpack)

    def _fqn_modifiers(self) -> dict[str, str]:
        """Let torch.distributed.checkpoint look up the key `weight` in the submodule `key_stand_in`."""
        return {"weight": "key_stand_in"}

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Shape of the packed factor."""

    @abstractmethod
    def stack(self) -> Tensor:
        """Return the packed factor: a plain contiguous tensor, differentiable in the trainable parts."""

    @abstractmethod
    def unpack(self, weight: Tensor) -> dict[str, Tensor]:
        """Convert a packed factor to a state dict of the parts."""

    @abstractmethod
    def restart(self, weight: Tensor) -> None:
        """Reset the trainable parts to their initial values.

        Args:
            weight: Packed factor initialized by PEFT. Parts without an anchor start from these values.
        """

    @abstractmethod
    def validate_same_anchor(self, weight: Tensor, name: str) -> None:
        """Refuse a packed factor whose anchor differs from the anchor of this factor.

        Raises:
            AnchorMismatchError: The shape or the anchor differs.
        """

    @property
    def file_shape(self) -> tuple[int, int]:
        """Shape of the factor in the adapter file, which differs from `shape` in the residual form."""
        return self.shape

    def to_file(self) -> Tensor:
        """Return the factor for the adapter file, detached from the autograd graph."""
        return self.stack().detach()

    def from_file(self, weight: Tensor) -> Tensor:
        """Convert a factor from an adapter file to the layout of `stack`."""
        return weight

    @property
    def weight(self) -> Tensor:
        """The packed factor, for PEFT's merging code; read-only, because each access computes a new tensor."""
        # Compiled graphs get a plain tensor. They do not need `_PackedWeight`, which guards against writes from PEFT.
        if torch.compiler.is_compiling():
            return self.stack()
        stack = self.stack()
        weight = replicate_on_mesh_of(stack, self.parameters())
        is_dtensor = weight is not stack
        return weight if is_dtensor else _PackedWeight.from_stack(stack)

    def forward(self, x: Float[Tensor, "*batch in_"]) -> Float[Tensor, "*batch out"]:
        return F.linear(x, self.stack())

    def validate_shape(self, weight: Tensor, name: str) -> None:
        """Refuse a packed factor of unexpected shape.

        Raises:
            AnchorMismatchError: The shapes differ.
        """
        if tuple(weight.shape) != self.shape:
            raise AnchorMismatchError(
                f"{name}: expected a factor of shape {self.shape}, got {tuple(weight.shape)}. The rank or the form of "
                "the file differs from this adapter: load the file under a new adapter name, or, if this adapter has "
                "the residual form, into a newly loaded base model with ailora.resume"
            )


class _KeyStandIn(nn.Module):
    """Module with a buffer `weight`, for loaders that look for each key among the parameters and buffers.

    `torch.distributed.checkpoint` loads a full state dict only into keys that it finds there, but never writes into
    this buffer. The buffer is a scalar, because the loader requires all tensors except scalars to be on one device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(()))


def _pack(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
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
    weight = _get_packed(state_dict, prefix)
    state_dict.pop(prefix + "weight", None)
    if weight is None:
        return
    # The anchor is checked here too, because a submodule can be loaded directly, without the hook of the model.
    module.validate_same_anchor(weight, prefix.removesuffix("."))
    state_dict.update({prefix + key: value for key, value in module.unpack(weight).items()})
    # Strict loading requires a value for every buffer.
    state_dict[prefix + "key_stand_in.weight"] = torch.zeros((), device=weight.device)


def validate_same_anchors(model: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Compare all anchors of a model with a state dict before any tensor is loaded (a load hook).

    Raises:
        AnchorMismatchError: An anchor differs, see `PackedFactor.validate_same_anchor`.
    """
    for name, module in model.named_modules():
        if not isinstance(module, PackedFactor):
            continue
        weight = _get_packed(state_dict, f"{prefix}{name}.")
        if weight is not None:
            module.validate_same_anchor(weight, f"{prefix}{name}")


def _get_packed(state_dict: dict[str, Tensor], prefix: str) -> Tensor | None:
    """Return the packed factor in a state dict, or None if the key is missing or holds the scalar of `_KeyStandIn`."""
    weight = state_dict.get(prefix + "weight")
    return None if weight is None or weight.ndim == 0 else full_tensor(weight)


class _PackedWeight(Tensor):
    """Packed factor that refuses in-place operations. All other operations return ordinary tensors.

    PEFT's hot-swap writes into `lora_A.weight.data`. The data of a packed factor are temporary, so the write
    would silently be lost.
    """

    self_reference: weakref.ref[Tensor]

    @classmethod
    def from_stack(cls, stack: Tensor) -> _PackedWeight:
        weight = stack.as_subclass(cls)
        # torch.utils.swap_tensors refuses tensors with weak references. Here it would swap only the temporary tensor.
        weight.self_reference = weakref.ref(weight)
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
        # Operators, assignments to attributes such as `data`, and methods such as `copy_`.
        is_write = name in ("__set__", "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__") or (
            name.endswith("_") and not name.endswith("__")
        )
        # Functions of `torch.nn.init` pass their tensor by keyword.
        target = args[0] if args else (kwargs or {}).get("tensor")
        if is_write and isinstance(target, cls):
            raise ModelError(
                "an anchored factor cannot be written through `.weight`, because it consists of a frozen anchor and a "
                "trained difference. Hot-swap into a model loaded by PeftModel.from_pretrained, or load the new "
                "adapter beside this one with load_adapter"
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            plain = result.as_subclass(Tensor) if isinstance(result, cls) else result
            # PEFT writes into `weight.data`, so this tensor must refuse writes too.
            reads_data = name == "__get__" and func == Tensor.data.__get__  # type: ignore[attr-defined]
        return cls.from_stack(plain) if reads_data and isinstance(plain, Tensor) else plain
