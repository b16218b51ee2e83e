"""Curvature of the training loss in each role's factors before training, and the learning rates it suggests.

The best learning rate of a start is inversely proportional to its largest Hessian eigenvalue (arXiv 2602.04998).
`rate_multiple` adapts the rule to Adam.
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

#: Largest residual of a converged Ritz value, relative to the value. With a larger residual the value may be far below
#: the largest eigenvalue.
_MAX_RELATIVE_RESIDUAL = 0.25

#: Maps vectors (n,) by key to the products (batches, n) of each batch's symmetric operator.
Products = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Curvature:
    """Largest eigenvalue of a role's block of the Hessian of the loss, averaged over batches.

    Largest means algebraically: gradient descent is stable below 2 / value, and negative curvature, however large, sets
    no such bound. The off-diagonal part between `A` and `B` holds the scaled gradient in W for every start. Its largest
    singular value is a floor under the eigenvalue, and plain LoRA and smaller starts lie on this floor.

    Attributes:
        value: Rayleigh quotient of the last Ritz vector x, in units of loss / parameter^2.
        residual: `|H x - value x|`. An eigenvalue lies within this distance of `value`. After a random start it is
            almost surely the largest, unless the residual is large relative to the value.
        spread: Standard error of `value` over the batches.
        iterations: Number of Lanczos steps, each a product with every batch's Hessian.
        batches: Number of averaged batches.
    """

    value: float
    residual: float
    spread: float
    iterations: int
    batches: int

    @property
    def error(self) -> float:
        """Root of the summed squares of residual and spread, which are independent; infinite without convergence."""
        converged = self.residual <= _MAX_RELATIVE_RESIDUAL * abs(self.value)
        return math.hypot(self.residual, self.spread) if converged else math.inf


@dataclass(frozen=True)
class RateMultiple:
    """Ratio of the good learning rates of two starts.

    Attributes:
        value: The ratio.
        error: Propagated error of the two curvatures. The error of the rule itself is not included.
    """

    value: float
    error: float


def rate_multiple(curvature: Curvature, reference: Curvature) -> RateMultiple:
    """Estimate the good learning rate of a start under Adam, as a multiple of the reference's.

    The rule is `(reference / curvature)^1/2`. With the size t of a start's factors, the gradient in the factors grows
    like t and the Hessian like t^2. The best rate of gradient descent therefore goes like 1 / t^2, and the best rate of
    Adam, whose step does not grow with the gradient, like 1 / t. The result is a starting point for a sweep and no
    substitute: of six rules this was the nearest to the sweep of `benchmarks/learning_rate_curvature.py`, on a single
    model with a single seed. The result is close to 1 wherever the floor of `Curvature` hides the difference.

    Args:
        curvature: Curvature of the start with the unknown rate.
        reference: Curvature of the start with the known rate (plain LoRA), of the same role and batches.

    Returns:
        The multiple, with its error.

    Raises:
        ModelError: A curvature is not positive and sets no rate.
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
    """Measure the largest curvature of the mean loss in the factors of each role.

    All roles advance together and share forward passes. The cost is at most `iterations + 1` passes over the batches,
    each a forward, a backward and a second backward per role. The model is unchanged.

    Args:
        model: A model that `adapt` returned, with factors in float32 or float64.
        losses: Mean loss of each batch, at least two batches.
        iterations: Largest number of Lanczos steps.
        tolerance: Residual relative to the value at which the iteration stops. The relative error of the value is about
            the square.
        seed: Seed of the random start vectors.
        adapter_name: PEFT's name for the adapter.

    Returns:
        Role -> curvature. If there are several roles, `hessian.ALL` -> curvature in all factors.

    Raises:
        InputError: There are fewer than two batches or no iterations, or a loss is not a scalar with gradients.
        ModelError: The adapter is missing, a gradient is not finite, or the model has no second derivatives.
    """
    if len(losses) < 2:
        raise InputError(f"expected at least two batches for an error bar, got {len(losses)}")
    blocks = blocks_by_role(model, adapter_name)

    def products(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return hessian_products(model, losses, {key: blocks[key] for key in vectors}, vectors)

    starts = {key: start_vector(block, seed) for key, block in blocks.items()}
    return largest_eigenvalues(products, starts, iterations=iterations, tolerance=tolerance)


def start_vector(block: Block, seed: int) -> Float[Tensor, " n"]:
    """Draw a normal random vector (n,) for a block."""
    # A generator per block: the vector of a role is the same whichever other roles are measured.
    vector = torch.randn(block.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return vector.to(block.parameters[0])


def largest_eigenvalues(
    products: Products, starts: Mapping[str, Float[Tensor, " n"]], *, iterations: int, tolerance: float
) -> dict[str, Curvature]:
    """Compute the largest eigenvalues of several symmetric operators by Lanczos with full reorthogonalization.

    Args:
        products: Returns the products of all given vectors at once. Operators that have converged are left out.
        starts: Start vector (n,) of each operator, not zero.
        iterations: Largest number of Lanczos steps. A last product gives the residual and the spread over batches.
        tolerance: Residual relative to the value at which the iteration of an operator stops.

    Returns:
        Key -> curvature.

    Raises:
        InputError: There are no iterations.
    """
    if iterations < 1:
        raise InputError(f"expected at least one iteration, got {iterations}")
    spaces = {key: _KrylovSpace(start) for key, start in starts.items()}
    for _ in range(iterations):
        growing = {key: space.last for key, space in spaces.items() if not space.has_converged(tolerance)}
        for key, images in products(growing).items() if growing else ():
            spaces[key].extend(images.mean(dim=0))
    vectors = {key: space.ritz_vector for key, space in spaces.items()}
    # The last product is with the Ritz vector itself: the recurrence gives the residual for the mean of the batches,
    # but not the spread between them.
    ritz_products = products(vectors)
    return {key: _measure(x, ritz_products[key], spaces[key].steps) for key, x in vectors.items()}


def _measure(x: Float[Tensor, " n"], products: Float[Tensor, "batches n"], iterations: int) -> Curvature:
    quotients = (products @ x).double()
    value = quotients.mean()
    residual = (products.mean(dim=0) - value.to(x) * x).norm()
    spread = quotients.std() / math.sqrt(len(quotients))
    return Curvature(float(value), float(residual), float(spread), iterations, len(quotients))


class _KrylovSpace:
    """Orthonormal basis of a Krylov space, and the operator's projection on the space in float64."""

    def __init__(self, start: Float[Tensor, " n"]) -> None:
        self._basis = (start / start.norm())[:, None]
        self._columns: list[Tensor] = []

    @property
    def steps(self) -> int:
        """Number of products so far."""
        return len(self._columns)

    @property
    def last(self) -> Float[Tensor, " n"]:
        """Last vector of the basis, whose product comes next."""
        return self._basis[:, -1]

    def extend(self, product: Float[Tensor, " n"]) -> None:
        """Extend the basis by the operator's product with `last`."""
        new, coefficients = orthonormalize(product[:, None], self._basis)
        self._columns.append(coefficients[:, 0].double().cpu())
        self._basis = torch.cat([self._basis, new], dim=1)

    def has_converged(self, tolerance: float) -> bool:
        """Return whether the residual of the largest Ritz value is at most `tolerance` times the value."""
        if not self.steps:
            return False
        value, vector = self._largest_ritz_pair()
        # The residual follows from the recurrence, without another product.
        return bool(self._columns[-1][-1].abs() * vector[-1].abs() <= tolerance * value.abs())

    @property
    def ritz_vector(self) -> Float[Tensor, " n"]:
        """Unit vector of the largest Ritz value."""
        return self._basis[:, : self.steps] @ self._largest_ritz_pair()[1].to(self._basis)

    def _largest_ritz_pair(self) -> tuple[Tensor, Tensor]:
        core = torch.zeros(self.steps, self.steps, dtype=torch.float64)
        for step, column in enumerate(self._columns):
            core[: step + 1, step] = column[: step + 1]
        values, vectors = torch.linalg.eigh(core, UPLO="U")
        return values[-1], vectors[:, -1]
