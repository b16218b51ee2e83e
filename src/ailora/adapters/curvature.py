"""How strongly the training loss bends in each role's factors at the start, by three measures with error bars.

Used to carry a learning rate from plain LoRA to another start: that each start's best rate goes inversely with its
largest Hessian eigenvalue is the observation of arXiv 2602.04998. Adam does not step along the gradient, so that the
same is measured in its metric, and along its own direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from ailora.adapters.hessian import Block, Loss, blocks_by_role, gradients, hessian_products
from ailora.errors import InputError, ModelError, parse_choice
from ailora.spectral.lanczos import orthonormalize

#: A Ritz value whose residual is larger than this share of it may be far below the largest eigenvalue.
_SETTLED = 0.25

#: Adam's `eps`, as in torch and transformers.
_EPS = 1e-8

_Operator = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class Metric(StrEnum):
    """In which lengths parameters are measured: as they are, or as Adam scales them."""

    PLAIN = "plain"
    ADAM = "adam"


@dataclass(frozen=True)
class Curvature:
    """The largest eigenvalue of a role's block of the Hessian of the loss, averaged over batches.

    The largest algebraically: gradient descent is stable below 2 / value, and negative curvature, however large, sets
    no such bound. (In plain LoRA's factors eigenvalues come in pairs of both signs: `A` bends nothing while `B` is 0.)

    Attributes:
        value: Rayleigh quotient of the last Ritz vector x; loss / parameter^2 in the plain metric, loss / parameter in
            Adam's.
        residual: `|H x - value x|`; an eigenvalue lies within it, and after a random start it is the largest one, almost
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
class FirstStep:
    """The loss along Adam's direction u: `loss(rate) = loss(0) - slope rate + bend rate^2 / 2`.

    `u = g / (root mean square of the batches' gradients + eps)`, g their mean: Adam's update with both moments settled.

    Attributes:
        slope: `<g, u>`, in units of loss per rate.
        bend: `<u, H u>`.
        error: standard error of `rate` over the batches.
    """

    slope: float
    bend: float
    error: float

    @property
    def rate(self) -> float:
        """The rate with the lowest loss after one step, as far as the parabola goes; infinite where it opens down."""
        return self.slope / self.bend if self.bend > 0 else math.inf


def curvature_by_role(
    model: PeftModel,
    losses: Sequence[Loss],
    *,
    metric: Metric | str = Metric.PLAIN,
    iterations: int = 12,
    tolerance: float = 0.1,
    seed: int = 0,
    adapter_name: str = "default",
) -> dict[str, Curvature]:
    """The largest curvature of the mean loss in the factors of each role, and of all roles under `hessian.ALL`.

    Lanczos with full reorthogonalization, all roles in step so that they share forward passes. Costs at most
    `iterations + 1` passes over the batches, each a forward, a backward and a second backward for every role; Adam's
    metric one of gradients more. Nothing of the model changes.

    Args:
        model: a model that `adapt` returned, with factors in float32 or float64.
        losses: the mean loss of each batch, two batches or more.
        metric: `plain` for H; `adam` for `D^-1/2 H D^-1/2`, D the root mean square of the batches' gradients + eps,
            where parameters without a gradient, which Adam does not move at first, are left out.
        iterations: the most Lanczos steps.
        tolerance: stop once the residual is this small relative to the value; the value's own error is its square.
        seed: of the random start vector.
        adapter_name: PEFT's name for the adapter.

    Raises:
        InputError: fewer than two batches, no iterations, no such metric, a loss that is not a scalar with gradients.
        ModelError: no such adapter, a gradient that is zero or not finite, no second derivatives.
    """
    metric = parse_choice("metric", metric, Metric)
    _require_batches(losses)
    if iterations < 1:
        raise InputError(f"{iterations} iterations: at least one is needed")
    blocks = blocks_by_role(model, adapter_name)
    scales = {key: torch.ones(block.size).to(block.parameters[0]) for key, block in blocks.items()}
    if metric is Metric.ADAM:
        scales = {key: _adam_scale(g, key).sqrt() for key, g in gradients(model, losses, blocks).items()}

    def apply(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        some = {key: blocks[key] for key in vectors}
        made = hessian_products(model, losses, some, {key: scales[key] * v for key, v in vectors.items()})
        return {key: scales[key] * product for key, product in made.items()}

    krylov = {key: _Krylov(_start(block, seed) * (scales[key] > 0)) for key, block in blocks.items()}
    for _ in range(iterations):
        growing = {key: space.last for key, space in krylov.items() if not space.settled(tolerance)}
        for key, products in apply(growing).items() if growing else ():
            krylov[key].extend(products.mean(dim=0))
    vectors = {key: space.ritz_vector for key, space in krylov.items()}
    made = apply(vectors)
    return {key: _curvature(vectors[key], made[key], krylov[key].steps) for key in blocks}


def first_step_by_role(
    model: PeftModel, losses: Sequence[Loss], *, adapter_name: str = "default"
) -> dict[str, FirstStep]:
    """Slope and curvature of the loss along Adam's direction in the factors of each role; two passes over the batches.

    Args:
        model: as `curvature_by_role`.
        losses: the mean loss of each batch, two batches or more.
        adapter_name: PEFT's name for the adapter.

    Raises:
        InputError, ModelError: as `curvature_by_role`.
    """
    _require_batches(losses)
    blocks = blocks_by_role(model, adapter_name)
    slopes = gradients(model, losses, blocks)
    directions = {key: g.mean(dim=0) * _adam_scale(g, key) for key, g in slopes.items()}
    bends = hessian_products(model, losses, blocks, directions)
    return {key: _first_step(slopes[key] @ u, bends[key] @ u) for key, u in directions.items()}


def _first_step(slopes: Float[Tensor, " batches"], bends: Float[Tensor, " batches"]) -> FirstStep:
    """The means, with the error of their ratio to first order (delta method)."""
    slopes, bends = slopes.double(), bends.double()
    slope, bend = slopes.mean(), bends.mean()
    error = _standard_error(slopes - slope / bend * bends) / bend.abs()
    return FirstStep(float(slope), float(bend), float(error) if bend > 0 else math.inf)


def _curvature(x: Float[Tensor, " n"], products: Float[Tensor, "batches n"], iterations: int) -> Curvature:
    quotients = (products @ x).double()
    value = quotients.mean()
    residual = (products.mean(dim=0) - value.to(x) * x).norm()
    return Curvature(float(value), float(residual), float(_standard_error(quotients)), iterations, len(products))


def _standard_error(values: Float[Tensor, " batches"]) -> Tensor:
    return values.std() / math.sqrt(len(values))


def _adam_scale(gradient: Float[Tensor, "batches n"], key: str) -> Float[Tensor, " n"]:
    """What Adam multiplies a gradient by, 1 / (root mean square + eps); 0 where there is no gradient."""
    size = gradient.square().mean(dim=0).sqrt()
    if not size.any():
        raise ModelError(f"the loss has no gradient in the factors of {key}: they do not train")
    return torch.where(size > 0, 1 / (size + _EPS), 0)


def _require_batches(losses: Sequence[Loss]) -> None:
    if len(losses) < 2:
        raise InputError(f"{len(losses)} batches: an error bar needs at least two")


def _start(block: Block, seed: int) -> Float[Tensor, " n"]:
    """Normal random numbers, the same for a block whichever others there are."""
    drawn = torch.randn(block.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(block.parameters[0])


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

    def _ritz(self) -> tuple[Tensor, Tensor]:
        core = torch.zeros(self.steps, self.steps, dtype=torch.float64)
        for step, column in enumerate(self._columns):
            core[: step + 1, step] = column[: step + 1]
        values, vectors = torch.linalg.eigh(core, UPLO="U")
        return values[-1], vectors[:, -1]

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
