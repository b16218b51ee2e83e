"""Curvature of the training loss in each role's factors before training, from which learning rates follow.

The best learning rate is inversely proportional to the largest Hessian eigenvalue at the initial factors
(arXiv 2602.04998). `rate_multiple` adapts the rule to Adam.
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

#: Largest relative residual of a Ritz value that counts as converged. With a larger residual, the Ritz value may be far
#: below the largest eigenvalue.
_MAX_RELATIVE_RESIDUAL = 0.25

#: Function that applies several symmetric operators at once, each with a matrix per batch: key -> vector (n,) becomes
#: key -> products (batches, n).
Products = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Curvature:
    """Largest eigenvalue of the loss Hessian in the factors of a role, averaged over batches.

    The eigenvalue is the algebraically largest: gradient descent is stable for learning rates below 2 / value, and
    negative curvature bounds no learning rate. The Hessian's block between `A` and `B` always contains the scaled
    gradient with respect to W. The largest singular value of this gradient is a lower bound of the eigenvalue, which
    plain LoRA and other small initial factors reach.

    Attributes:
        value: Rayleigh quotient of the last Ritz vector x, in units of loss / parameter^2.
        residual: `|H x - value x|`. Some eigenvalue is within this distance of `value`: almost surely the largest,
            because the start vector is random, unless the residual is large relative to the value.
        spread: Standard error of `value` over the batches.
        iterations: Number of Lanczos steps, each a product with the Hessian of every batch.
        batches: Number of batches in the average.
    """

    value: float
    residual: float
    spread: float
    iterations: int
    batches: int

    @property
    def error(self) -> float:
        """Residual and spread, which are independent, added in quadrature. Infinite without convergence."""
        converged = self.residual <= _MAX_RELATIVE_RESIDUAL * abs(self.value)
        return math.hypot(self.residual, self.spread) if converged else math.inf


@dataclass(frozen=True)
class RateMultiple:
    """Ratio between the good learning rates of two inits.

    Attributes:
        value: The ratio.
        error: Error propagated from the two curvatures. The error of the rule itself is not included.
    """

    value: float
    error: float


def rate_multiple(curvature: Curvature, reference: Curvature) -> RateMultiple:
    """Estimate the good learning rate of an init under Adam, as a multiple of a reference init's rate.

    The rule is `(reference / curvature)^1/2`. If the initial factors are scaled by t, the gradient with respect to the
    factors scales by t and the Hessian by t^2. The best rate of gradient descent therefore scales by 1 / t^2. The best
    rate of Adam, whose step size does not depend on the size of the gradient, scales by 1 / t. The result is a starting
    point for a sweep, not a replacement: among six rules, this rule was the closest to the sweep in
    `benchmarks/learning_rate_curvature.py`, for a single model and seed. The result is close to 1 wherever the lower
    bound described in `Curvature` hides the difference.

    Args:
        curvature: Curvature at the initial factors whose rate is to be estimated.
        reference: Curvature at the initial factors whose good rate is known (plain LoRA), for the same role and
            batches.

    Returns:
        The multiple, with its error.

    Raises:
        ModelError: A curvature is not positive, so no rate follows.
    """
    if not min(curvature.value, reference.value) > 0:
        raise ModelError(
            f"expected positive curvatures to derive a learning rate, got {curvature.value:.3g} and "
            f"{reference.value:.3g}"
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

    The roles share forward passes. The cost is at most `iterations + 1` passes over the batches, each a forward pass, a
    backward pass, and a second backward pass for every role. The model does not change.

    Args:
        model: Model from `adapt`, with factors in float32 or float64.
        losses: A function for each batch, which computes the mean loss; at least two.
        iterations: Maximum number of Lanczos steps.
        tolerance: Relative residual at which the iteration stops. The relative error of the eigenvalue is about the
            tolerance squared.
        seed: Seed of the random start vectors.
        adapter_name: PEFT's name for the adapter.

    Returns:
        Role -> curvature. With several roles also `hessian.ALL` -> curvature in the factors of all roles together.

    Raises:
        InputError: There are fewer than two batches, `iterations` is below 1, or a loss is not a scalar with gradients.
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
    """Draw a random start vector for a block.

    Args:
        block: Block of n parameters.
        seed: Seed of the vector.

    Returns:
        Vector (n,) of standard normal entries, on the device and in the dtype of the first parameter.
    """
    # Each block has its own generator, so that the vector of a role does not depend on which roles are measured.
    vector = torch.randn(block.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return vector.to(block.parameters[0])


def largest_eigenvalues(
    products: Products, starts: Mapping[str, Float[Tensor, " n"]], *, iterations: int, tolerance: float
) -> dict[str, Curvature]:
    """Compute the largest eigenvalues of several symmetric operators by Lanczos with full reorthogonalization.

    Args:
        products: Function that multiplies several operators with a vector each. A call contains only the operators
            that have not converged.
        starts: Start vector (n,) of each operator, not zero.
        iterations: Maximum number of Lanczos steps. A further product gives the residual and the spread over batches.
        tolerance: Relative residual at which the iteration of an operator stops.

    Returns:
        Key -> curvature.

    Raises:
        InputError: `iterations` is below 1.
    """
    if iterations < 1:
        raise InputError(f"expected at least one iteration, got {iterations}")
    spaces = {key: _KrylovSpace(start) for key, start in starts.items()}
    for _ in range(iterations):
        growing = {key: space.last for key, space in spaces.items() if not space.has_converged(tolerance)}
        for key, images in products(growing).items() if growing else ():
            spaces[key].extend(images.mean(dim=0))
    vectors = {key: space.ritz_vector for key, space in spaces.items()}
    # The recurrence already gives the residual for the mean over batches. Only a product with the Ritz vector itself
    # gives the spread between batches.
    ritz_products = products(vectors)
    return {key: _measure(x, ritz_products[key], spaces[key].steps) for key, x in vectors.items()}


def _measure(x: Float[Tensor, " n"], products: Float[Tensor, "batches n"], iterations: int) -> Curvature:
    quotients = (products @ x).double()
    value = quotients.mean()
    residual = (products.mean(dim=0) - value.to(x) * x).norm()
    spread = quotients.std() / math.sqrt(len(quotients))
    return Curvature(float(value), float(residual), float(spread), iterations, len(quotients))


class _KrylovSpace:
    """Orthonormal basis of a Krylov space, and the operator's projection onto the space in float64."""

    def __init__(self, start: Float[Tensor, " n"]) -> None:
        self._basis = (start / start.norm())[:, None]
        self._columns: list[Tensor] = []

    @property
    def steps(self) -> int:
        """Number of products so far."""
        return len(self._columns)

    @property
    def last(self) -> Float[Tensor, " n"]:
        """Last vector of the basis, with which the next product is computed."""
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
        # The recurrence gives the residual without a further product, each of which costs a pass over the batches.
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
