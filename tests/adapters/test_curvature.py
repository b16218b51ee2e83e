"""Curvatures against the exact Hessian of small models, and what they cost."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ailora
from ailora.adapters import hessian
from ailora.adapters.curvature import Curvature, Metric, curvature_by_role, first_step_by_role
from ailora.adapters.hessian import ALL, blocks_by_role, gradients
from tests.tiny import tiny_inputs, tiny_model

BATCHES, WIDTH = 3, 6
ROLES = {r"\.?query$": "query", r"\.?value$": "value"}


class Attention(nn.Module):
    """One head of attention with a residual path, over tokens (batch, positions, width)."""

    def __init__(self, fused_kernel: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.fused_kernel = fused_kernel

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.fused_kernel:
            return x + nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + (q @ k.mT / WIDTH**0.5).softmax(dim=-1) @ v


def base(fused_kernel: bool = False) -> nn.Module:
    """Two layers of attention and a readout, in float64, with dropout that must not be on."""
    torch.manual_seed(0)
    layers = [Attention(fused_kernel), nn.Dropout(0.5), Attention(fused_kernel), nn.Flatten(), nn.Linear(4 * WIDTH, 3)]
    return nn.Sequential(*layers).double().train()


def losses_of(model: nn.Module) -> list[Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(1)

    def loss(x: Tensor, labels: Tensor) -> Callable[[], Tensor]:
        return lambda: nn.functional.cross_entropy(model(x), labels)

    return [
        loss(
            2 * torch.randn(5, 4, WIDTH, generator=generator, dtype=torch.float64),
            torch.randint(0, 3, (5,), generator=generator),
        )
        for _ in range(BATCHES)
    ]


def adapted(policy: str = "ailora", **options: Any) -> tuple[Any, list[Callable[[], Tensor]]]:
    model = ailora.adapt(base(), policy, **{"rank": 2, "role_names": ROLES, **options})
    return model, losses_of(model)


def exact(model: Any, losses: list[Callable[[], Tensor]], key: str) -> tuple[Tensor, Tensor]:
    """The gradients (batches, n) and the Hessians (batches, n, n) of a block, from its columns."""
    parameters = blocks_by_role(model)[key].parameters
    slopes, hessians = [], []
    for loss in losses:
        made = torch.autograd.grad(loss(), parameters, create_graph=True)
        slope = torch.cat([part.reshape(-1) for part in made])
        every = torch.eye(len(slope), dtype=slope.dtype)
        columns = torch.autograd.grad(slope, parameters, every, is_grads_batched=True)
        slopes.append(slope.detach())
        hessians.append(torch.cat([column.reshape(len(slope), -1) for column in columns], dim=1))
    return torch.stack(slopes), torch.stack(hessians)


def largest(hessians: Tensor) -> tuple[float, float]:
    """The largest eigenvalue of the mean, and the standard error of its Rayleigh quotient."""
    values, vectors = torch.linalg.eigh(hessians.mean(dim=0))
    quotients = torch.stack([vectors[:, -1] @ one @ vectors[:, -1] for one in hessians])
    return float(values[-1]), float(quotients.std()) / len(hessians) ** 0.5


@pytest.mark.parametrize(("policy", "form"), [("lora", "anchored"), ("ailora", "anchored"), ("pissa", "residual")])
def test_the_largest_eigenvalue_is_that_of_the_exact_hessian(policy: str, form: str) -> None:
    model, losses = adapted(policy, form=form)
    found = curvature_by_role(model, losses, iterations=80, tolerance=1e-7)
    assert list(found) == ["query", "value", ALL]
    model.eval()
    for key, curvature in found.items():
        value, spread = largest(exact(model, losses, key)[1])
        assert curvature.value == pytest.approx(value, rel=1e-9)
        assert curvature.spread == pytest.approx(spread, rel=1e-4)
        assert curvature.residual <= 1e-6 * value


def test_adams_metric() -> None:
    for policy in ("lora", "ailora"):
        model, losses = adapted(policy)
        found = curvature_by_role(model, losses, metric="adam", iterations=120, tolerance=1e-7)
        model.eval()
        for key, curvature in found.items():
            slopes, hessians = exact(model, losses, key)
            size = slopes.square().mean(dim=0).sqrt()
            scale = torch.where(size > 0, (size + 1e-8) ** -0.5, 0.0)
            assert curvature.value == pytest.approx(largest(scale[:, None] * hessians * scale)[0], rel=1e-6)


def test_the_first_step() -> None:
    model, losses = adapted()
    found = first_step_by_role(model, losses)
    model.eval()
    for key, step in found.items():
        slopes, hessians = exact(model, losses, key)
        u = slopes.mean(dim=0) / (slopes.square().mean(dim=0).sqrt() + 1e-8)
        assert step.slope == pytest.approx(float(slopes.mean(dim=0) @ u))
        assert step.bend == pytest.approx(float(u @ hessians.mean(dim=0) @ u))
        assert step.rate == (pytest.approx(step.slope / step.bend) if step.bend > 0 else float("inf"))
    # The parabola is that of the loss: of step t along u, to third order in t.
    block = blocks_by_role(model)[ALL]
    slopes = gradients(model, losses, {ALL: block})[ALL]
    u = slopes.mean(dim=0) / (slopes.square().mean(dim=0).sqrt() + 1e-8)
    moved = []
    for t in (-1e-4, 0.0, 1e-4):
        other = copy.deepcopy(model)
        for parameter, part in zip(blocks_by_role(other)[ALL].parameters, split(u, block.parameters), strict=True):
            parameter.data -= t * part
        moved.append(sum(loss().item() for loss in losses_of(other)) / BATCHES)
    assert (moved[0] - moved[2]) / 2e-4 == pytest.approx(found[ALL].slope, rel=1e-5)
    assert (moved[0] - 2 * moved[1] + moved[2]) / 1e-8 == pytest.approx(found[ALL].bend, rel=1e-3)


def split(vector: Tensor, parameters: tuple[nn.Parameter, ...]) -> list[Tensor]:
    parts = vector.split([p.numel() for p in parameters])
    return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]


@pytest.mark.parametrize("metric", list(Metric))
def test_after_few_iterations_the_error_covers_the_truth(metric: Metric) -> None:
    model, losses = adapted()
    truth = curvature_by_role(model, losses, metric=metric, iterations=120, tolerance=1e-7)
    settled = 0
    for seed, iterations in itertools.product(range(5), (2, 4, 6, 8)):
        for key, curvature in curvature_by_role(model, losses, metric=metric, iterations=iterations, seed=seed).items():
            assert 0 < curvature.iterations <= iterations
            # A Ritz value comes from below.
            assert -1e-9 * truth[key].value <= truth[key].value - curvature.value <= curvature.error
            settled += math.isfinite(curvature.error)
    assert settled > 20


def test_the_default_is_accurate_to_the_square_of_its_tolerance() -> None:
    model, losses = adapted()
    truth = curvature_by_role(model, losses, iterations=80, tolerance=1e-7)
    for key, curvature in curvature_by_role(model, losses).items():
        assert curvature.value == pytest.approx(truth[key].value, rel=0.02)
        assert curvature.batches == BATCHES


def test_the_same_seed_gives_the_same_numbers_and_roles_do_not_depend_on_each_other() -> None:
    model, losses = adapted(dropout=0.1)
    state = torch.get_rng_state()
    found = curvature_by_role(model, losses, iterations=4)
    assert torch.equal(state, torch.get_rng_state())
    assert found == curvature_by_role(model, losses, iterations=4)
    assert found != curvature_by_role(model, losses, iterations=4, seed=1)
    alone, losses = adapted(roles=("value",))
    assert list(alone_found := curvature_by_role(alone, losses, iterations=4)) == ["value"]
    assert alone_found["value"].value == pytest.approx(found["value"].value, rel=1e-9)


def test_nothing_of_the_model_changes() -> None:
    model, losses = adapted()
    model.get_base_model()[0].eval()
    before, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    with torch.no_grad():
        curvature_by_role(model, losses, iterations=2, metric="adam")
        first_step_by_role(model, losses)
    assert flags == [module.training for module in model.modules()]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_cost_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, losses = adapted()
    calls, products = [0], [0]
    product = hessian._product

    def counted_loss(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            calls[0] += 1
            return loss()

        return call

    def counted_product(*arguments: Any) -> Tensor:
        products[0] += 1
        return product(*arguments)

    monkeypatch.setattr(hessian, "_product", counted_product)
    counted = [counted_loss(loss) for loss in losses]
    found = curvature_by_role(model, counted, iterations=5, tolerance=1e-9)
    assert calls[0] == (5 + 1) * BATCHES
    assert products[0] == sum(c.iterations + 1 for c in found.values()) * BATCHES == 3 * 6 * BATCHES
    # An easy role stops early, and costs nothing while others go on.
    calls[0] = products[0] = 0
    found = curvature_by_role(model, counted, iterations=40)
    steps = [c.iterations for c in found.values()]
    assert calls[0] == (max(steps) + 1) * BATCHES < 41 * BATCHES
    assert products[0] == (sum(steps) + 3) * BATCHES


def test_fused_projections_have_a_curvature_for_each_role() -> None:
    inputs = tiny_inputs("gpt2")
    found: dict[str, dict[str, Curvature]] = {}
    for couple in (False, True):
        model = ailora.adapt(tiny_model("gpt2").double(), rank=2, couple_roles=couple)
        losses: list[Callable[[], Tensor]] = [
            lambda k=k, model=model: model(**inputs)[0].square()[..., k::2].mean() for k in range(2)
        ]
        found[str(couple)] = curvature_by_role(model, losses, iterations=30, tolerance=1e-6)
    assert list(found["False"]) == list(found["True"]) == ["query", "value", ALL]
    # More rows to move in cannot bend less.
    assert found["True"]["query"].value >= found["False"]["query"].value * (1 - 1e-6)
    assert found["False"][ALL].value >= max(found["False"][role].value for role in ("query", "value")) * (1 - 1e-6)


def test_kernels_without_second_derivatives_are_stepped_around_or_named() -> None:
    eager, losses = adapted()
    fused = ailora.adapt(base(fused_kernel=True), rank=2, role_names=ROLES)
    expected = curvature_by_role(eager, losses, iterations=3)
    found = curvature_by_role(fused, losses_of(fused), iterations=3)
    assert found["query"].value == pytest.approx(expected["query"].value, rel=1e-9)

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, *grads: Any) -> Any:
            return grads[0]

    x = torch.ones(1, 4, WIDTH, dtype=torch.float64)
    once: list[Callable[[], Tensor]] = [lambda: Once.apply(eager(x)).square().mean()] * 2  # type: ignore[misc]
    with pytest.raises(ailora.ModelError, match="attn_implementation='eager'"):
        curvature_by_role(eager, once)


def test_what_cannot_be_measured_is_refused() -> None:
    model, losses = adapted()
    with pytest.raises(ailora.InputError, match="1 batches: an error bar needs at least two"):
        curvature_by_role(model, losses[:1])
    with pytest.raises(ailora.InputError, match="1 batches"):
        first_step_by_role(model, losses[:1])
    with pytest.raises(ailora.InputError, match="0 iterations"):
        curvature_by_role(model, losses, iterations=0)
    with pytest.raises(ailora.InputError, match=r"unknown metric 'adan' \(did you mean 'adam'"):
        curvature_by_role(model, losses, metric="adan")
    with pytest.raises(ailora.InputError, match="a scalar with gradients"):
        curvature_by_role(model, [lambda: losses[0]().detach()] * 2)
    with pytest.raises(ailora.InputError, match="a scalar with gradients"):
        curvature_by_role(model, [lambda: losses[0]().expand(2)] * 2)
    with pytest.raises(ailora.ModelError, match="not finite"):
        curvature_by_role(model, [lambda: losses[0]() * float("inf")] * 2)
    with pytest.raises(ailora.ModelError, match="no gradient in the factors of query"):
        first_step_by_role(model, [lambda: losses[0]() * 0] * 2)
    with pytest.raises(ailora.ModelError, match="no adapter 'other'"):
        curvature_by_role(model, losses, adapter_name="other")
    model.requires_grad_(False)
    with pytest.raises(ailora.ModelError, match="no trainable factors"):
        curvature_by_role(model, losses)


def test_a_parameter_of_several_roles_is_refused() -> None:
    model = ailora.adapt(tiny_model("gpt2"), rank=2, form="stock")
    with pytest.raises(ailora.ModelError, match=r"one parameter for query, value: measure in the anchored form"):
        blocks_by_role(model)
