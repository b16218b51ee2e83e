"""Hessian-vector products of a loss with respect to an adapter's factors, role by role.

Each product is computed by differentiating twice (Pearlmutter 1994, "Fast exact multiplication by the Hessian"). For
each batch, the diagonal blocks of all roles share the forward pass and the first backward pass; each block has a second
backward pass of its own. The graph of a batch is freed before the next batch runs, so memory holds a single graph.
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

#: Function that computes the model's mean loss on a batch, a scalar with gradients. Repeated calls must return the same
#: value, because callers multiply with one Hessian several times.
Loss = Callable[[], Tensor]

#: Key of the block that contains the factors of all roles.
ALL = "all"

#: Attention implementations of transformers that have second derivatives. With other implementations, second
#: derivatives may silently lack terms, because autograd cannot differentiate gradients computed inside a kernel.
_TWICE_DIFFERENTIABLE_ATTENTION = ("eager", "sdpa")

#: Phrases in torch's errors for functions without a second derivative: kernels, compiled models, custom functions.
_MISSING_DERIVATIVE = ("is not implemented", "double backward", "differentiate twice")


@dataclass(frozen=True)
class Block:
    """Diagonal block of the Hessian, given by its parameters."""

    parameters: tuple[nn.Parameter, ...]

    @property
    def size(self) -> int:
        """Number n of entries in all parameters."""
        return sum(parameter.numel() for parameter in self.parameters)

    def vector(self, tensors: Mapping[nn.Parameter, Tensor]) -> Float[Tensor, " n"]:
        """Flatten and concatenate the tensors of all parameters, in the order of `parameters`."""
        return torch.cat([tensors[parameter].reshape(-1) for parameter in self.parameters])


def blocks_by_role(model: PeftModel, adapter_name: str = "default") -> dict[str, Block]:
    """Collect the trainable factors of every role: `A` and `B` in all layers.

    Args:
        model: Model from `adapt` or `apply_plan`.
        adapter_name: PEFT's name for the adapter.

    Returns:
        Role -> block. If there are several roles, the key `ALL` gives the block with the factors of all roles.

    Raises:
        ModelError: The model has no adapter of this name from ailora, the adapter has no trainable factors, or a
            parameter belongs to several roles.
    """
    parameters = dict(model.named_parameters())
    by_role: dict[str, list[nn.Parameter]] = {}
    for name, (roles, _) in role_factors(model, adapter_name).items():
        if len(roles) > 1:
            raise ModelError(f"the roles {', '.join(roles)} share the parameter {name}: measure with form='anchored'")
        for role in roles:
            by_role.setdefault(role.value, []).append(parameters[name])
    if not by_role:
        raise ModelError(f"the adapter {adapter_name!r} has no trainable factors: activate it with set_adapter() first")
    if len(by_role) > 1:
        by_role[ALL] = [parameter for group in by_role.values() for parameter in group]
    return {role: Block(tuple(group)) for role, group in by_role.items()}


def hessian_products(
    model: PeftModel, losses: Sequence[Loss], blocks: Mapping[str, Block], vectors: Mapping[str, Float[Tensor, " n"]]
) -> dict[str, Float[Tensor, "batches n"]]:
    """Multiply each block of the Hessian with a vector, batch by batch.

    During the computation, dropout is off, and the attention of `torch.nn.functional` uses the math kernel.

    Args:
        model: The adapted model.
        losses: For each batch, a function that computes the mean loss.
        blocks: Key -> block of the Hessian.
        vectors: Key -> vector (n,) for the block.

    Returns:
        Key -> products (batches, n).

    Raises:
        InputError: There is no batch, or a loss is not a scalar with gradients.
        ModelError: A gradient or a product is not finite, or the model cannot be differentiated twice.
    """
    if not losses:
        raise InputError("expected the loss of at least one batch, got none")
    _validate_attention(model)
    products = []
    for gradient in _iter_gradients(model, losses, blocks):
        with _explaining_missing_derivatives():
            products.append({key: _multiply(block, gradient, vectors[key]) for key, block in blocks.items()})
        if not all(torch.isfinite(product).all() for product in products[-1].values()):
            raise ModelError("a second derivative of the loss is not finite")
    return {key: torch.stack([batch[key] for batch in products]) for key in blocks}


def _multiply(block: Block, gradient: Mapping[nn.Parameter, Tensor], vector: Tensor) -> Tensor:
    """Multiply a block of the Hessian with a vector `v`, as the gradient of `g' v` for the gradient `g` of the loss."""
    slope = block.vector(gradient) @ vector
    # A loss that is linear in the block has a constant gradient without a graph, and the product is zero.
    if not slope.requires_grad:
        return torch.zeros_like(vector)
    parts = torch.autograd.grad(slope, block.parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in parts])


def _iter_gradients(
    model: PeftModel, losses: Sequence[Loss], blocks: Mapping[str, Block]
) -> Iterator[dict[nn.Parameter, Tensor]]:
    """Yield each batch's gradients by parameter, with their graph. The dictionary is cleared before the next batch."""
    parameters = list(dict.fromkeys(parameter for block in blocks.values() for parameter in block.parameters))
    with _measuring(model):
        for loss in losses:
            value = loss()
            if value.ndim or not value.requires_grad:
                raise InputError(f"expected the loss to be a scalar with gradients for the adapter, got {value}")
            with _explaining_missing_derivatives():
                parts = torch.autograd.grad(
                    value, parameters, create_graph=True, allow_unused=True, materialize_grads=True
                )
            if not all(torch.isfinite(part).all() for part in parts):
                raise ModelError(f"the gradient of a loss of {value.item():.3g} is not finite")
            gradient = dict(zip(parameters, parts, strict=True))
            # All references to the graph must be gone before the next batch runs. The caller's loop variable keeps the
            # dictionary alive, so clearing the dictionary is what frees the tensors.
            del value, parts
            yield gradient
            gradient.clear()


@contextmanager
def _measuring(model: nn.Module) -> Generator[None, None, None]:
    """Set eval mode, enable gradients and select the math kernel of attention. Restore everything on exit."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # The flash and memory-efficient kernels of torch have no second derivatives.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        # `model.train()` would also switch modules that the user keeps in eval mode.
        for module, training in flags:
            module.training = training


def _validate_attention(model: PeftModel) -> None:
    # The parts of a composite model, such as a vision tower, may have attention implementations of their own.
    for module in model.modules():
        kernel = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if kernel not in (None, *_TWICE_DIFFERENTIABLE_ATTENTION):
            raise ModelError(
                f"{kernel} attention has no second derivatives: load the model with attn_implementation='eager'"
            )


@contextmanager
def _explaining_missing_derivatives() -> Generator[None, None, None]:
    try:
        yield
    except RuntimeError as error:
        if not any(phrase in str(error) for phrase in _MISSING_DERIVATIVE):
            raise
        raise ModelError(
            f"the model cannot be differentiated twice ({error}): load it with attn_implementation='eager', and do not "
            "compile it"
        ) from error
