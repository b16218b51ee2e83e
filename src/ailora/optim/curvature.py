"""Curvature of the loss in each role's factors before training, used to estimate learning rates.

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

#: Function that multiplies several symmetric operators with a vector each, separately on every batch. Maps
#: key -> vector (n,) to key -> products (batches, n).
Multiply = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Curvature:
    """Largest eigenvalue of the loss Hessian in the factors of a role, averaged over batches.

    The eigenvalue is the algebraically largest, because only positive curvature limits the learning rate: gradient
    descent is stable for learning rates below 2 / value. The Hessian's block between `A` and `B` always contains `s G`,
    where s is the scaling and G the gradient with respect to the weight. The largest singular value of `s G` is a lower
    bound of the eigenvalue. For small initial factors, such as those of plain LoRA, the eigenvalue equals this lower
    bound.

    Attributes:
        value: Rayleigh quotient of the last Ritz vector x, in units of loss / parameter^2.
        residual: `|H x - value x|`. An eigenvalue is within this distance of `value`. If the residual is small relative
            to the value, that eigenvalue is almost surely the largest, because the start vector is random.
        spread: Standard error of `value` over the batches.
        iterations: Number of Lanczos steps. Each step multiplies the Hessian of every batch with a vector.
        batches: Number of batches in the average.
    """

    value: float
    residual: float
    spread: float
    iterations: int
    batches: int

    @property
    def error(self) -> float:
        """Error of `value`: residual and spread, added in quadrature. Infinite if the iteration has not converged."""
        converged = self.residual <= _MAX_RELATIVE_RESIDUAL * abs(self.value)
        return math.hypot(self.residual, self.spread) if converged else math.inf


@dataclass(frozen=True)
class RateMultiple:
    """Ratio of the best learning rates of two inits.

    Attributes:
        value: The ratio.
        error: Error propagated from the two curvatures. The error of the rule itself is not included.
    """

    value: float
    error: float


def rate_multiple(curvature: Curvature, reference: Curvature) -> RateMultiple:
    """Estimate the best learning rate of an init under Adam, as a multiple of the best rate of a reference init.

    The rule is `(reference / curvature)^1/2`. If the initial factors are scaled by t, the gradient with respect to the
    factors scales by t and the Hessian by t^2. The best rate of gradient descent therefore scales by 1 / t^2. The best
    rate of Adam, whose step size does not depend on the size of the gradient, scales by 1 / t.

    Use the result as the starting point of a sweep over learning rates, not as a replacement. In
    `benchmarks/learning_rate_curvature.py`, with a single model and seed, this rule came closest to the sweep among six
    rules. If both eigenvalues equal the lower bound described in `Curvature`, the result is close to 1 even where the
    best rates differ.

    Args:
        curvature: Curvature at the initial factors of the init.
        reference: Curvature at the initial factors of the reference init (plain LoRA), for the same role and batches.

    Returns:
        The multiple, with its error.

    Raises:
        ModelError: A curvature is not positive.
    """
    # `not ... > 0` instead of `<= 0`, so that NaN is refused too.
    if not curvature.value > 0 or not reference.value > 0:
        raise ModelError(
            f"expected positive curvatures to derive a learning rate, got {curvature.value:.3g} and "
            f"{reference.value:.3g}"
        )
    value = math.sqrt(reference.value / curvature.value)
    # The square root halves the relative error.
    relative_error = math.hypot(curvature.error / curvature.value, reference.error / reference.value) / 2
    return RateMultiple(value, value * relative_error)


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

    The cost is at most `iterations + 1` passes over the batches. For each batch, a pass runs the model forward and
    backward once for all roles, and backward a second time for each role. The model does not change.

    Args:
        model: Model from `adapt`, with factors in float32 or float64.
        losses: For each of at least two batches, a function that computes the mean loss.
        iterations: Maximum number of Lanczos steps.
        tolerance: Relative residual at which the iteration stops. The relative error of the eigenvalue is about the
            tolerance squared.
        seed: Seed of the random start vectors.
        adapter_name: PEFT's name for the adapter.

    Returns:
        Role -> curvature. If there are several roles, the key `hessian.ALL` gives the curvature in all factors
        together.

    Raises:
        InputError: There are fewer than two batches, `iterations` is below 1, or a loss is not a scalar with gradients.
        ModelError: The adapter is missing, a gradient is not finite, or the model has no second derivatives.
    """
    if len(losses) < 2:
        raise InputError(f"expected at least two batches for an error bar, got {len(losses)}")
    blocks = blocks_by_role(model, adapter_name)

    def multiply(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return hessian_products(model, losses, {key: blocks[key] for key in vectors}, vectors)

    starts = {key: start_vector(block, seed) for key, block in blocks.items()}
    return largest_eigenvalues(multiply, starts, iterations=iterations, tolerance=tolerance)


def start_vector(block: Block, seed: int) -> Float[Tensor, " n"]:
    """Draw a random start vector for a block.

    Args:
        block: Block of n parameters.
        seed: Seed of the vector.

    Returns:
        Vector (n,) of standard normal entries, on the device and in the dtype of the first parameter.
    """
    # Each block has a separate generator, so the vector of a role does not depend on which roles are measured.
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(block.size, generator=generator, dtype=torch.float64, device="cpu")
    return vector.to(block.parameters[0])


def largest_eigenvalues(
    multiply: Multiply, starts: Mapping[str, Float[Tensor, " n"]], *, iterations: int, tolerance: float
) -> dict[str, Curvature]:
    """Compute the largest eigenvalues of several symmetric operators by Lanczos with full reorthogonalization.

    Args:
        multiply: Function that multiplies several operators with a vector each. Each Lanczos step passes only the
            operators that have not converged.
        starts: Start vector (n,) of each operator, not zero.
        iterations: Maximum number of Lanczos steps. An additional product gives the residual and the spread.
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
        last_vectors = {key: space.last for key, space in spaces.items() if not space.has_converged(tolerance)}
        if not last_vectors:
            break
        for key, products in multiply(last_vectors).items():
            spaces[key].extend(products.mean(dim=0))
    ritz_vectors = {key: space.ritz_vector for key, space in spaces.items()}
    # The Lanczos recurrence already gives the residual for the mean over batches. The spread between batches needs a
    # product with the Ritz vector itself.
    ritz_products = multiply(ritz_vectors)
    return {key: _measure(x, ritz_products[key], spaces[key].steps) for key, x in ritz_vectors.items()}


def _measure(x: Float[Tensor, " n"], products: Float[Tensor, "batches n"], iterations: int) -> Curvature:
    # Apple's GPUs have no float64.
    quotients = (products @ x).cpu().double()
    value = quotients.mean()
    residual = (products.mean(dim=0) - float(value) * x).norm()
    spread = quotients.std() / math.sqrt(len(quotients))
    return Curvature(float(value), float(residual), float(spread), iterations, len(quotients))


class _KrylovSpace:
    """Orthonormal basis of a Krylov space, and the operator's projection onto the space in float64."""

    def __init__(self, start: Float[Tensor, " n"]) -> None:
        self._basis = (start / start.norm())[:, None]
        #: Coefficients of each product in the basis, columns of the projected operator: (2,), (3,), ...
        self._columns: list[Tensor] = []

    @property
    def steps(self) -> int:
        """Number of products so far."""
        return len(self._columns)

    @property
    def last(self) -> Float[Tensor, " n"]:
        """Last vector of the basis. The next product multiplies the operator with this vector."""
        return self._basis[:, -1]

    def extend(self, product: Float[Tensor, " n"]) -> None:
        """Extend the basis by the operator's product with `last`."""
        new, coefficients = orthonormalize(product[:, None], self._basis)
        self._columns.append(coefficients[:, 0].cpu().double())
        self._basis = torch.cat([self._basis, new], dim=1)

    def has_converged(self, tolerance: float) -> bool:
        """Return whether the residual of the largest Ritz value is at most `tolerance` times the value."""
        if not self.steps:
            return False
        value, vector = self._largest_ritz_pair()
        # The Lanczos recurrence gives the residual without a further product, which would cost a pass over the batches.
        last_coefficient = self._columns[-1][-1]
        residual = last_coefficient.abs() * vector[-1].abs()
        return bool(residual <= tolerance * value.abs())

    @property
    def ritz_vector(self) -> Float[Tensor, " n"]:
        """Ritz vector of the largest Ritz value, with norm 1."""
        return self._basis[:, : self.steps] @ self._largest_ritz_pair()[1].to(self._basis)

    def _largest_ritz_pair(self) -> tuple[Tensor, Tensor]:
        projected = torch.zeros(self.steps, self.steps, dtype=torch.float64, device="cpu")
        for step, column in enumerate(self._columns):
            projected[: step + 1, step] = column[: step + 1]
        values, vectors = torch.linalg.eigh(projected, UPLO="U")
        return values[-1], vectors[:, -1]
