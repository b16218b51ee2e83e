"""Curvatures against the exact Hessian of small models, and what they cost."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ailora
from ailora.optim import hessian
from ailora.optim.curvature import Curvature, curvature_by_role, rate_multiple, start_vector
from ailora.optim.hessian import ALL, blocks_by_role
from tests.families import FAMILIES
from tests.tiny_models import tiny_inputs, tiny_model

BATCHES, WIDTH = 3, 6
ROLES = {r"\.?query$": "query", r"\.?value$": "value"}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than these matrices."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


def exact(model: Any, losses: list[Callable[[], Tensor]], key: str) -> Tensor:
    """The Hessians (batches, n, n) of a block, from all their columns."""
    parameters = blocks_by_role(model)[key].parameters
    hessians = []
    for loss in losses:
        made = torch.autograd.grad(loss(), parameters, create_graph=True)
        slope = torch.cat([part.reshape(-1) for part in made])
        every = torch.eye(len(slope), dtype=slope.dtype)
        columns = torch.autograd.grad(slope, parameters, every, is_grads_batched=True)
        hessians.append(torch.cat([column.reshape(len(slope), -1) for column in columns], dim=1))
    return torch.stack(hessians)


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
        value, spread = largest(exact(model, losses, key))
        assert curvature.value == pytest.approx(value, rel=1e-9)
        assert curvature.spread == pytest.approx(spread, rel=1e-4)
        assert curvature.residual <= 1e-6 * value


def test_after_few_iterations_the_error_covers_the_truth() -> None:
    model, losses = adapted()
    truth = curvature_by_role(model, losses, iterations=120, tolerance=1e-7)
    settled = 0
    for seed, iterations in itertools.product(range(5), (2, 4, 6, 8)):
        for key, curvature in curvature_by_role(model, losses, iterations=iterations, seed=seed).items():
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
        curvature_by_role(model, losses, iterations=2)
    assert flags == [module.training for module in model.modules()]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_cost_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, losses = adapted()
    calls, products = [0], [0]
    product = hessian._multiply

    def counted_loss(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            calls[0] += 1
            return loss()

        return call

    def counted_product(*arguments: Any) -> Tensor:
        products[0] += 1
        return product(*arguments)

    monkeypatch.setattr(hessian, "_multiply", counted_product)
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


def test_one_batch_is_in_memory_at_a_time() -> None:
    model, losses = adapted()
    alive: list[weakref.ref[Tensor]] = []

    def watched(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            assert all(old() is None for old in alive)
            value = loss()
            alive.append(weakref.ref(value))
            return value

        return call

    curvature_by_role(model, [watched(loss) for loss in losses], iterations=2)
    assert len(alive) == 3 * BATCHES


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


def test_kernels_without_second_derivatives_are_stepped_around_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    eager, losses = adapted()
    fused = ailora.adapt(base(fused_kernel=True), rank=2, role_names=ROLES)
    expected = curvature_by_role(eager, losses, iterations=3)
    found = curvature_by_role(fused, losses_of(fused), iterations=3)
    assert found["query"].value == pytest.approx(expected["query"].value, rel=1e-9)

    monkeypatch.setattr(hessian, "sdpa_kernel", lambda _: contextlib.nullcontext())
    with pytest.raises(ailora.ModelError, match=r"differentiated twice \(.*load it with attn_implementation='eager'"):
        curvature_by_role(fused, losses_of(fused))
    named = ailora.adapt(FAMILIES["bert"].model(), rank=2)
    named.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ailora.ModelError, match="flash_attention_2 attention has no second derivatives"):
        curvature_by_role(named, losses)


def test_what_cannot_be_measured_is_refused() -> None:
    model, losses = adapted()
    with pytest.raises(ailora.InputError, match="expected at least two batches for an error bar, got 1"):
        curvature_by_role(model, losses[:1])
    with pytest.raises(ailora.InputError, match="expected at least one iteration, got 0"):
        curvature_by_role(model, losses, iterations=0)
    with pytest.raises(ailora.InputError, match="a scalar with gradients"):
        curvature_by_role(model, [lambda: losses[0]().detach()] * 2)
    with pytest.raises(ailora.InputError, match="a scalar with gradients"):
        curvature_by_role(model, [lambda: losses[0]().expand(2)] * 2)
    with pytest.raises(ailora.ModelError, match="not finite"):
        curvature_by_role(model, [lambda: losses[0]() * float("inf")] * 2)
    with pytest.raises(ailora.ModelError, match="no adapter 'other'"):
        curvature_by_role(model, losses, adapter_name="other")
    model.requires_grad_(False)
    with pytest.raises(ailora.ModelError, match="no trainable factors"):
        curvature_by_role(model, losses)


def test_a_parameter_of_several_roles_is_refused() -> None:
    model = ailora.adapt(tiny_model("gpt2"), rank=2, form="stock")
    with pytest.raises(ailora.ModelError, match=r"query, value share the parameter .*: measure with form='anchored'"):
        blocks_by_role(model)


def test_the_multiple_of_a_rate() -> None:
    flat, bent = (Curvature(value, error, 0.0, iterations=4, batches=2) for value, error in ((1.0, 0.1), (16.0, 1.6)))
    assert rate_multiple(bent, flat).value == 0.25
    assert rate_multiple(flat, bent).value == 4
    assert rate_multiple(bent, flat).error == pytest.approx(0.25 * 0.1 / 2**0.5)
    unsettled = Curvature(1.0, 0.5, 0.0, iterations=1, batches=2)
    assert rate_multiple(unsettled, flat).error == math.inf
    for value in (0.0, -1.0, math.nan):
        with pytest.raises(ailora.ModelError, match="expected positive curvatures"):
            rate_multiple(Curvature(value, 0.1, 0.0, iterations=4, batches=2), flat)


def test_factors_twice_as_long_bend_four_times_as_much() -> None:
    """In directions of one factor: `B` where the other, `A`, is twice as long."""
    model, losses = adapted("lora")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)
    before = curvature_by_role(model, losses, iterations=40, tolerance=1e-6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.mul_(2)
    after = curvature_by_role(model, losses, iterations=40, tolerance=1e-6)
    assert rate_multiple(after["value"], before["value"]).value == pytest.approx(0.5)


def test_curvatures_without_a_number_give_no_rate() -> None:
    good, bad = (Curvature(value, 0.1, 0.0, iterations=4, batches=2) for value in (1.0, math.nan))
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(ailora.ModelError, match="expected positive curvatures"):
            rate_multiple(*pair)


def test_a_second_derivative_that_is_not_finite_is_named() -> None:
    model, losses = adapted()
    deltas = [p for p in model.parameters() if p.requires_grad]
    # At zero, |x|^1.5 has the derivative 0 and an infinite second derivative.
    bent = [lambda loss=loss: loss() + sum(d.abs().pow(1.5).sum() for d in deltas) for loss in losses]
    with pytest.raises(ailora.ModelError, match="second derivative of the loss is not finite"):
        curvature_by_role(model, bent)


def test_the_start_vector_does_not_depend_on_the_default_device() -> None:
    block = hessian.Block((nn.Parameter(torch.zeros(3, device="cpu")),))
    expected = start_vector(block, 0)
    with torch.device("meta"):
        assert torch.equal(start_vector(block, 0), expected)
