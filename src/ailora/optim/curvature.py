"""How strongly the training loss bends in each role's factors at the start, and what learning rate that allows.

That each start's best learning rate goes inversely with its largest Hessian eigenvalue is the observation of
arXiv 2602.04998. `rate_multiple` says what becomes of it under Adam.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from ailora.errors import InputError, ModelError
from ailora.optim.hessian import Block, Loss, blocks_by_role, hessian_products
from ailora.spectral.lanczos import orthonormalize

#: A Ritz value whose residual is larger than this share of it may be far below the largest eigenvalue.
_SETTLED = 0.25

#: Vectors (n,) by key -> the products (batches, n) of each batch's symmetric operator with them.
Products = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Curvature:
    """The largest eigenvalue of a role's block of the Hessian of the loss, averaged over batches.

    The largest algebraically: gradient descent is stable below 2 / value, and negative curvature, however large, sets
    no such bound. The block between `A` and `B` holds the scaled gradient in W whatever the start, so that the value is
    not below its largest singular value: this floor is what plain LoRA, and starts shorter than it, are seen to have.

    Attributes:
        value: Rayleigh quotient of the last Ritz vector x, in units of loss / parameter^2.
        residual: `|H x - value x|`; an eigenvalue lies within it. After a random start it is the largest one, almost
            surely, unless the residual is large against the value.
        spread: standard error of `value` over the batches.
        iterations: Lanczos steps, each a product with every batch's Hessian.
        batches: how many batches were averaged.
    """

    value: float
    residual: float
    spread: float
    iterations: int
    batches: int

    @property
    def error(self) -> float:
        """Residual and spread together, which know nothing of each other; infinite if the iteration had not settled."""
        settled = self.residual <= _SETTLED * abs(self.value)
        return math.hypot(self.residual, self.spread) if settled else math.inf


@dataclass(frozen=True)
class RateMultiple:
    """What one start's good learning rate is multiplied by, to get another's.

    Attributes:
        value: the multiple.
        error: what the errors of the two curvatures make of it; how well the rule fits is not in it.
    """

    value: float
    error: float


def rate_multiple(curvature: Curvature, reference: Curvature) -> RateMultiple:
    """The multiple of the reference's good learning rate that suits a start with another curvature, under Adam.

    `(reference / curvature)^1/2`: with the size t of a start's factors the gradient in them grows like t and the
    Hessian like t^2. So gradient descent's best rate goes like 1 / t^2, and that of Adam, whose step does not grow with
    the gradient, like 1 / t. It is a starting point for a sweep, no substitute: of six rules it came nearest to the
    sweep of `benchmarks/learning_rate_curvature.py`, on one model with one seed, and it says "as plain LoRA" wherever
    the gradient's own block (see `Curvature`) is the largest thing that bends.

    Args:
        curvature: of the start whose rate is wanted.
        reference: of the start whose good rate is known (plain LoRA's), of the same role and batches.

    Raises:
        ModelError: a curvature that is not positive sets no rate.
    """
    if not min(curvature.value, reference.value) > 0:
        raise ModelError(
            f"curvatures {curvature.value:.3g} and {reference.value:.3g} set no rate: they are not positive"
        )
    value = math.sqrt(reference.value / curvature.value)
    error = math.hypot(curvature.error / curvature.value, reference.error / reference.value) / 2
    return RateMultiple(value, value * error)


def curvature_by_role(
    model: PeftModel,
    losses: Sequence[Loss],
    *,
    iterations: int = 12,
    tolerance: float = 0.1,
    seed: int = 0,
    adapter_name: str = "default",
) -> dict[str, Curvature]:
    """The largest curvature of the mean loss in the factors of each role, and of all roles under `hessian.ALL`.

    All roles go in step, so that they share forward passes. Costs at most `iterations + 1` passes over the batches,
    each a forward, a backward and a second backward for every role. Nothing of the model changes.

    Args:
        model: a model that `adapt` returned, with factors in float32 or float64.
        losses: the mean loss of each batch, two batches or more.
        iterations: the most Lanczos steps.
        tolerance: stop once the residual is this small relative to the value; the value's error is about its square.
        seed: of the random start vectors.
        adapter_name: PEFT's name for the adapter.

    Returns:
        role -> curvature; the key `hessian.ALL` is there if there are several roles.

    Raises:
        InputError: fewer than two batches, no iterations, a loss that is not a scalar with gradients.
        ModelError: no such adapter, a gradient that is not finite, no second derivatives.
    """
    if len(losses) < 2:
        raise InputError(f"{len(losses)} batches: an error bar needs at least two")
    blocks = blocks_by_role(model, adapter_name)

    def products(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return hessian_products(model, losses, {key: blocks[key] for key in vectors}, vectors)

    starts = {key: start_vector(block, seed) for key, block in blocks.items()}
    return largest_eigenvalues(products, starts, iterations=iterations, tolerance=tolerance)


def start_vector(block: Block, seed: int) -> Float[Tensor, " n"]:
    """Normal random numbers, the same for a block whichever others there are."""
    drawn = torch.randn(block.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(block.parameters[0])


def largest_eigenvalues(
    products: Products, starts: Mapping[str, Float[Tensor, " n"]], *, iterations: int, tolerance: float
) -> dict[str, Curvature]:
    """The largest eigenvalues of several symmetric operators, by Lanczos with full reorthogonalization, in step.

    Args:
        products: gives those of all vectors that it is asked for at once; operators that have settled are left out.
        starts: a start vector of each operator, not zero.
        iterations: the most Lanczos steps; one more product gives the residual and the spread over batches.
        tolerance: as `curvature_by_role`.

    Raises:
        InputError: no iterations.
    """
    if iterations < 1:
        raise InputError(f"{iterations} iterations: at least one is needed")
    spaces = {key: _Krylov(start) for key, start in starts.items()}
    for _ in range(iterations):
        growing = {key: space.last for key, space in spaces.items() if not space.settled(tolerance)}
        for key, made in products(growing).items() if growing else ():
            spaces[key].extend(made.mean(dim=0))
    vectors = {key: space.ritz_vector for key, space in spaces.items()}
    made = products(vectors)
    return {key: _curvature(x, made[key], spaces[key].steps) for key, x in vectors.items()}


def _curvature(x: Float[Tensor, " n"], products: Float[Tensor, "batches n"], iterations: int) -> Curvature:
    quotients = (products @ x).double()
    value = quotients.mean()
    residual = (products.mean(dim=0) - value.to(x) * x).norm()
    spread = quotients.std() / math.sqrt(len(quotients))
    return Curvature(float(value), float(residual), float(spread), iterations, len(quotients))


class _Krylov:
    """An orthonormal basis of a Krylov space, and the operator's projection on it, kept in float64."""

    def __init__(self, start: Float[Tensor, " n"]) -> None:
        self._basis = (start / start.norm())[:, None]
        self._columns: list[Tensor] = []

    @property
    def steps(self) -> int:
        """How many products it is made of."""
        return len(self._columns)

    @property
    def last(self) -> Float[Tensor, " n"]:
        """The vector whose product comes next."""
        return self._basis[:, -1]

    def extend(self, product: Float[Tensor, " n"]) -> None:
        """Take the operator's product with `last`."""
        new, coefficients = orthonormalize(product[:, None], self._basis)
        self._columns.append(coefficients[:, 0].double().cpu())
        self._basis = torch.cat([self._basis, new], dim=1)

    def settled(self, tolerance: float) -> bool:
        """Whether the largest Ritz value's residual, known from the recurrence, is small enough."""
        if not self.steps:
            return False
        value, vector = self._ritz()
        return bool(self._columns[-1][-1].abs() * vector[-1].abs() <= tolerance * value.abs())

    @property
    def ritz_vector(self) -> Float[Tensor, " n"]:
        """The unit vector that the largest Ritz value belongs to."""
        return self._basis[:, : self.steps] @ self._ritz()[1].to(self._basis)

    def _ritz(self) -> tuple[Tensor, Tensor]:
        core = torch.zeros(self.steps, self.steps, dtype=torch.float64)
        for step, column in enumerate(self._columns):
            core[: step + 1, step] = column[: step + 1]
        values, vectors = torch.linalg.eigh(core, UPLO="U")
        return values[-1], vectors[:, -1]
