"""Products with the Hessian of a loss in an adapter's factors, role by role.

Products come from differentiating twice (Pearlmutter 1994, "Fast exact multiplication by the Hessian"). A batch is run
once a pass, forward and backward, and serves all blocks; its graph is gone before the next one starts, so that memory
is that of one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ailora.errors import InputError, ModelError
from ailora.optim.param_groups import role_factors

#: The mean loss of one batch under the model, a scalar with gradients; the same whenever it is called.
Loss = Callable[[], Tensor]

#: The key of all roles together, beside those of the roles.
ALL = "all"

#: transformers' names of the kernels that can be differentiated twice. Others may leave terms out in silence: autograd
#: does not follow a gradient that was computed without it.
_PLAIN_ATTENTION = ("eager", "sdpa")


@dataclass(frozen=True)
class Block:
    """Parameters that are moved together, and seen as one vector (n,)."""

    parameters: tuple[nn.Parameter, ...]

    @property
    def size(self) -> int:
        """How many numbers they hold."""
        return sum(parameter.numel() for parameter in self.parameters)

    def vector(self, tensors: Mapping[nn.Parameter, Tensor]) -> Float[Tensor, " n"]:
        """The tensors that go with the parameters, one after the other."""
        return torch.cat([tensors[parameter].reshape(-1) for parameter in self.parameters])


def blocks_by_role(model: PeftModel, adapter_name: str = "default") -> dict[str, Block]:
    """The factors of every role, `A` and `B` of all layers, and under `ALL` those of all roles if there are several.

    Raises:
        ModelError: no such adapter of ours, it does not train, or one of its parameters belongs to several roles.
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
    """The product of every batch's Hessian, block by block, with that block's vector.

    Dropout is off, attention of `torch.nn.functional` runs in its plain kernel, the one with second derivatives, and
    nothing of the model changes.

    Raises:
        InputError: a loss that is not a scalar with gradients.
        ModelError: a gradient that is not finite, or attention that cannot be differentiated twice.
    """
    _validate_plain_attention(model)
    made = []
    for gradient in _passes(model, losses, blocks):
        with _explained():
            made.append({key: _product(block, gradient, vectors[key]) for key, block in blocks.items()})
    return {key: torch.stack([batch[key] for batch in made]) for key in blocks}


def _product(block: Block, gradient: Mapping[nn.Parameter, Tensor], vector: Tensor) -> Tensor:
    slope = block.vector(gradient) @ vector
    if not slope.requires_grad:
        return torch.zeros_like(vector)
    made = torch.autograd.grad(slope, block.parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in made])


def _passes(
    model: PeftModel, losses: Sequence[Loss], blocks: Mapping[str, Block]
) -> Iterator[dict[nn.Parameter, Tensor]]:
    """The gradient of each batch by parameter, with a graph of its own."""
    every = list(dict.fromkeys(parameter for block in blocks.values() for parameter in block.parameters))
    with _measuring(model):
        for loss in losses:
            value = loss()
            if value.ndim or not value.requires_grad:
                raise InputError(f"a loss is a scalar with gradients to the adapter, not {value}")
            with _explained():
                made = torch.autograd.grad(value, every, create_graph=True, allow_unused=True, materialize_grads=True)
            if not all(torch.isfinite(part).all() for part in made):
                raise ModelError(f"the loss {value.item():.3g} has a gradient that is not finite")
            gradient = dict(zip(every, made, strict=True))
            del value, made
            yield gradient
            # The caller's loop still holds the dictionary: what it held is the graph, which is to go now.
            gradient.clear()


@contextmanager
def _measuring(model: nn.Module) -> Iterator[None]:
    """Eval mode, gradients on, attention that can be differentiated twice; afterwards all is as before."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for module, training in flags:
            module.training = training


def _validate_plain_attention(model: PeftModel) -> None:
    kernel = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if kernel not in (None, *_PLAIN_ATTENTION):
        raise ModelError(
            f"{kernel} attention has no second derivatives: load the model with attn_implementation='eager'"
        )


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "is not implemented" not in str(error):
            raise
        raise ModelError(
            f"the model cannot be differentiated twice ({error}): load it with attn_implementation='eager'"
        ) from error
