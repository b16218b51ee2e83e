"""Hessian-vector products of a loss in an adapter's factors, role by role.

Products come from differentiating twice (Pearlmutter 1994, "Fast exact multiplication by the Hessian"). Each batch runs
forward and backward once per pass, for all blocks together. Its graph is freed before the next batch, so that memory
holds a single graph.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ailora.errors import InputError, ModelError
from ailora.optim.param_groups import role_factors

#: Returns the mean loss of a batch under the model, a scalar with gradients, equal at every call.
Loss = Callable[[], Tensor]

#: Key of the block of all roles together.
ALL = "all"

#: transformers' names of attention kernels with second derivatives. Other kernels may drop terms silently: autograd
#: does not follow a gradient that a kernel computes itself.
_TWICE_DIFFERENTIABLE_ATTENTION = ("eager", "sdpa")


@dataclass(frozen=True)
class Block:
    """Block of the Hessian: parameters flattened into a vector (n,)."""

    parameters: tuple[nn.Parameter, ...]

    @property
    def size(self) -> int:
        """Number n of entries of all parameters."""
        return sum(parameter.numel() for parameter in self.parameters)

    def vector(self, tensors: Mapping[nn.Parameter, Tensor]) -> Float[Tensor, " n"]:
        """Flatten and concatenate a tensor per parameter, in the order of the block."""
        return torch.cat([tensors[parameter].reshape(-1) for parameter in self.parameters])


def blocks_by_role(model: PeftModel, adapter_name: str = "default") -> dict[str, Block]:
    """Collect the trained factors of every role, `A` and `B` of all layers.

    Args:
        model: A model that `adapt` or `apply_plan` returned.
        adapter_name: PEFT's name for the adapter.

    Returns:
        Role -> block. If there are several roles, `ALL` -> block of all factors.

    Raises:
        ModelError: The model has no such adapter of ours, the adapter does not train, or a parameter belongs to several
            roles.
    """
    parameters = dict(model.named_parameters())
    by_role: dict[str, list[nn.Parameter]] = {}
    for name, (roles, _) in role_factors(model, adapter_name).items():
        if len(roles) > 1:
            raise ModelError(f"{name} is one parameter for {', '.join(roles)}: measure in the anchored form")
        for role in roles:
            by_role.setdefault(role.value, []).append(parameters[name])
    if not by_role:
        raise ModelError(f"the adapter {adapter_name!r} has no trainable factors: set_adapter() it first")
    if len(by_role) > 1:
        by_role[ALL] = [parameter for group in by_role.values() for parameter in group]
    return {role: Block(tuple(group)) for role, group in by_role.items()}


def hessian_products(
    model: PeftModel, losses: Sequence[Loss], blocks: Mapping[str, Block], vectors: Mapping[str, Float[Tensor, " n"]]
) -> dict[str, Float[Tensor, "batches n"]]:
    """Multiply each block of every batch's Hessian with the block's vector.

    Dropout is off and attention of `torch.nn.functional` runs in its math kernel; the model's state is restored.

    Args:
        model: The adapted model.
        losses: Mean loss of each batch.
        blocks: Blocks of the Hessian by key.
        vectors: Vector (n,) of each block, by key.

    Returns:
        Key -> products (batches, n).

    Raises:
        InputError: A loss is not a scalar with gradients.
        ModelError: A gradient is not finite, or the model cannot be differentiated twice.
    """
    _validate_attention(model)
    products = []
    for gradient in _iter_gradients(model, losses, blocks):
        with _explaining_missing_derivatives():
            products.append({key: _multiply(block, gradient, vectors[key]) for key, block in blocks.items()})
    return {key: torch.stack([batch[key] for batch in products]) for key in blocks}


def _multiply(block: Block, gradient: Mapping[nn.Parameter, Tensor], vector: Tensor) -> Tensor:
    slope = block.vector(gradient) @ vector
    # The gradient of a linear function is constant: its Hessian is zero, and there is no graph to differentiate.
    if not slope.requires_grad:
        return torch.zeros_like(vector)
    parts = torch.autograd.grad(slope, block.parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in parts])


def _iter_gradients(
    model: PeftModel, losses: Sequence[Loss], blocks: Mapping[str, Block]
) -> Iterator[dict[nn.Parameter, Tensor]]:
    """Yield the gradient of each batch by parameter, with its graph; the dictionary is emptied before the next."""
    parameters = list(dict.fromkeys(parameter for block in blocks.values() for parameter in block.parameters))
    with _measuring(model):
        for loss in losses:
            value = loss()
            if value.ndim or not value.requires_grad:
                raise InputError(f"a loss is a scalar with gradients to the adapter, got {value}")
            with _explaining_missing_derivatives():
                parts = torch.autograd.grad(
                    value, parameters, create_graph=True, allow_unused=True, materialize_grads=True
                )
            if not all(torch.isfinite(part).all() for part in parts):
                raise ModelError(f"the loss {value.item():.3g} has a gradient that is not finite")
            gradient = dict(zip(parameters, parts, strict=True))
            # Every reference to the graph has to go before the next batch runs. The caller's loop still holds the
            # dictionary, so that emptying it is the only way to free its tensors.
            del value, parts
            yield gradient
            gradient.clear()


@contextmanager
def _measuring(model: nn.Module) -> Generator[None, None, None]:
    """Put the model into eval mode, with gradients and the math kernel of attention; restore it afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # Flash and memory-efficient kernels of torch have no second derivatives.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        # Module by module: `model.train()` would also switch on modules that the user keeps in eval mode.
        for module, training in flags:
            module.training = training


def _validate_attention(model: PeftModel) -> None:
    kernel = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if kernel not in (None, *_TWICE_DIFFERENTIABLE_ATTENTION):
        raise ModelError(
            f"{kernel} attention has no second derivatives: load the model with attn_implementation='eager'"
        )


@contextmanager
def _explaining_missing_derivatives() -> Generator[None, None, None]:
    try:
        yield
    except RuntimeError as error:
        if "is not implemented" not in str(error):
            raise
        raise ModelError(
            f"the model cannot be differentiated twice ({error}): load it with attn_implementation='eager'"
        ) from error
