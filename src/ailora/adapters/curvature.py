"""Curvature of the training loss in an adapter's factors, role by role.

Products with the Hessian come from differentiating twice (Pearlmutter 1994), its largest eigenvalue from Lanczos'
method with full reorthogonalization. A batch's gradient is taken once a pass and serves all roles; nothing of a batch
outlives its pass, so that memory is that of one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ailora.adapters.learning_rates import role_factors
from ailora.spectral.lanczos import orthonormalize

#: The mean loss of one batch under the model, with gradients; the same number whenever it is called.
Loss = Callable[[], Tensor]

#: Key of all roles together.
ALL = "all"


@dataclass(frozen=True)
class Curvature:
    """The largest eigenvalue of a role's block of the Hessian of the mean loss over some batches.

    The largest one algebraically: gradient descent is stable below 2 / value, and negative curvature, however large,
    sets no such bound. (In the factors of plain LoRA eigenvalues come in pairs of both signs, as `A` bends nothing
    while `B` is zero.)

    Attributes:
        value: Rayleigh quotient of the last Ritz vector, in units of loss / parameter^2.
        residual: `|H x - value x|`; an eigenvalue lies within it.
        spread: standard error of `value` over the batches.
        iterations: Lanczos steps.
        batches: how many batches were averaged.
    """

    value: float
    residual: float
    spread: float
    iterations: int
    batches: int

    @property
    def error(self) -> float:
        """Residual and spread together: they have nothing to do with each other."""
        return math.hypot(self.residual, self.spread)


@dataclass(frozen=True)
class FirstStep:
    """The loss along Adam's direction: `loss(rate) = loss(0) - slope rate + bend rate^2 / 2`.

    Attributes:
        slope: `<g, u>`, g the mean gradient of the batches, `u = g / root mean square of the batches' gradients`.
        bend: `<u, H u>`.
        slopes: the slope of each batch.
        bends: the bend of each batch.
    """

    slope: float
    bend: float
    slopes: tuple[float, ...]
    bends: tuple[float, ...]

    @property
    def best_rate(self) -> float:
        return self.slope / self.bend if self.bend > 0 else math.inf


@dataclass(frozen=True)
class _Block:
    parameters: tuple[nn.Parameter, ...]

    @property
    def size(self) -> int:
        return sum(p.numel() for p in self.parameters)

    def flat(self, gradients: Mapping[nn.Parameter, Tensor]) -> Tensor:
        return torch.cat([gradients[p].reshape(-1) for p in self.parameters])

    def product(self, gradients: Mapping[nn.Parameter, Tensor], vector: Tensor) -> Tensor:
        dot = self.flat(gradients) @ vector
        if not dot.requires_grad:
            return torch.zeros_like(vector)
        made = torch.autograd.grad(dot, self.parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        return torch.cat([g.reshape(-1) for g in made])


def blocks_of(model, adapter_name="default", by_factor=False):
    parameters = dict(model.named_parameters())
    out: dict[str, list] = {}
    for name, (roles, factor) in role_factors(model, adapter_name).items():
        assert len(roles) == 1
        out.setdefault(roles[0].value, []).append(parameters[name])
        if by_factor:
            out.setdefault(f"{roles[0].value}.{factor}", []).append(parameters[name])
        out.setdefault(ALL, []).append(parameters[name])
    return {k: _Block(tuple(v)) for k, v in out.items()}


@contextmanager
def _twice(model):
    flags = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for m, f in flags:
            m.training = f


def _passes(losses, blocks, *, vectors=None):
    every = list(dict.fromkeys(p for b in blocks.values() for p in b.parameters))
    for loss in losses:
        made = torch.autograd.grad(
            loss(), every, create_graph=vectors is not None, allow_unused=True, materialize_grads=True
        )
        g = dict(zip(every, made))
        yield {
            k: (b.flat(g).detach(), b.product(g, vectors[k]) if vectors is not None else None)
            for k, b in blocks.items()
        }


def gradients(model, losses, blocks):
    with _twice(model):
        per = list(_passes(losses, blocks))
    return {k: torch.stack([p[k][0] for p in per]) for k in blocks}


def curvatures(model, losses, blocks, *, scales=None, iterations=16, tolerance=0.02, seed=0):
    basis, core, done = {}, {}, {}
    for k, b in blocks.items():
        if scales is not None and not (scales[k] > 0).any():
            continue
        v = torch.randn(b.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(b.parameters[0])
        if scales is not None:
            v = v * (scales[k] > 0)
        basis[k] = (v / v.norm())[:, None]
        core[k] = torch.zeros(iterations + 1, iterations + 1, dtype=torch.float64)

    def scaled(k, v):
        return v if scales is None else scales[k] * v

    blocks = {k: blocks[k] for k in basis}
    active = dict(blocks)
    history = {k: [] for k in blocks}
    ritz, iters = {}, {}
    with _twice(model):
        for step in range(iterations):
            if not active:
                break
            vectors = {k: scaled(k, basis[k][:, -1]) for k in active}
            total = dict.fromkeys(active, 0)
            for made in _passes(losses, active, vectors=vectors):
                for k in active:
                    total[k] = total[k] + made[k][1] / len(losses)
            for k in list(active):
                y = scaled(k, total[k])[:, None]
                q, c = orthonormalize(y, basis[k])
                n = basis[k].shape[1]
                core[k][: n + 1, n - 1] = c[:, 0].double()
                T = core[k][:n, :n]
                vals, vecs = torch.linalg.eigh((T + T.T) / 2)
                res = abs(float(c[-1, 0]) * float(vecs[-1, -1]))
                history[k].append((float(vals[-1]), res, float(vals[0])))
                ritz[k] = basis[k] @ vecs[:, -1].to(basis[k])
                iters[k] = n
                basis[k] = torch.cat([basis[k], q], 1)
                if res <= tolerance * abs(float(vals[-1])) or n >= blocks[k].size:
                    del active[k]
        vectors = {k: scaled(k, ritz[k]) for k in blocks}
        per = [{k: scaled(k, m[k][1]) for k in blocks} for m in _passes(losses, blocks, vectors=vectors)]
    out = {}
    for k in blocks:
        prods = torch.stack([p[k] for p in per])
        quot = (prods @ ritz[k]).double()
        mean = prods.mean(0)
        val = quot.mean()
        out[k] = (
            Curvature(
                float(val),
                float((mean - val.to(mean) * ritz[k]).norm()),
                float(quot.std() / len(quot) ** 0.5),
                iters[k],
                len(losses),
            ),
            history[k],
        )
    return out


def first_steps(model, losses, blocks):
    gs = gradients(model, losses, blocks)
    u = {
        k: torch.where(g.square().mean(0) > 0, g.mean(0) / g.square().mean(0).sqrt().clamp_min(1e-30), 0)
        for k, g in gs.items()
    }
    with _twice(model):
        per = list(_passes(losses, blocks, vectors=u))
    out = {}
    for k in blocks:
        s = [float(p[k][0] @ u[k]) for p in per]
        b = [float(p[k][1] @ u[k]) for p in per]
        out[k] = FirstStep(sum(s) / len(s), sum(b) / len(b), tuple(s), tuple(b))
    return out
