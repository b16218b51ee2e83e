"""The grid of `B0`, and what a stacked weight allows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ailora
from ailora.lora.anchored_factor import AnchoredA, AnchoredB


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.floats(1e-12, 1e12),
    moved=st.floats(0, 8),
    tail=st.floats(1, 30),
)
def test_the_anchor_comes_back_bit_for_bit(seed: int, size: float, moved: float, tail: float) -> None:
    """For any size of `B0`, heavy tails, and differences of up to eight times its largest entry."""
    generator = torch.Generator().manual_seed(seed)
    B0 = size * torch.randn(17, 3, generator=generator) ** (1 if tail < 15 else 3)
    factor = AnchoredB(B0)
    with torch.no_grad():
        factor.delta.copy_((2 * torch.rand(17, 3, generator=generator) - 1) * moved * factor.anchor.abs().max())
    # Read where another anchor is: another machine's.
    anchor, delta = AnchoredB(1.01 * B0).unstack(factor.stack().detach())
    assert torch.equal(anchor, factor.anchor)
    assert torch.equal(delta, factor.delta)


@pytest.mark.parametrize("times", [9.0, 1e3, 1e9])
def test_a_difference_that_swallows_the_anchor_gives_back_the_one_that_is_there(times: float) -> None:
    generator = torch.Generator().manual_seed(1)
    factor = AnchoredB(torch.randn(17, 3, generator=generator))
    with torch.no_grad():
        factor.delta.copy_(times * torch.randn(17, 3, generator=generator))
    anchor, delta = factor.unstack(factor.stack().detach())
    assert torch.equal(anchor, factor.anchor)
    assert torch.equal(delta, factor.delta)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 300), size=st.floats(1e-12, 1e12))
def test_the_grid_moves_the_start_by_less_than_a_hundred_thousandth(seed: int, rows: int, size: float) -> None:
    B0 = size * torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))
    assert (AnchoredB(B0).anchor.double() - B0.double()).norm() < 1e-5 * B0.double().norm()


def test_powers_of_two_are_no_exception() -> None:
    for largest in (1.0, 2.0, 0.5, 1 - 2.0**-24, 1 + 2.0**-23):
        factor = AnchoredB(torch.tensor([[largest], [0.3]]))
        with torch.no_grad():
            factor.delta.copy_(torch.tensor([[0.1], [-0.7]]))
        assert torch.equal(factor.unstack(factor.stack().detach())[0], factor.anchor)


def test_a_zero_anchor_stays_zero() -> None:
    assert torch.equal(AnchoredB(torch.zeros(3, 2)).anchor, torch.zeros(3, 2))


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.data.copy_(torch.zeros(4, 3)),
        lambda w: w.data.fill_(0.0),
        lambda w: w.zero_(),
        lambda w: w.__setitem__(0, 0.0),
        lambda w: w.__iadd__(1.0),
        lambda w: setattr(w, "data", torch.zeros(4, 3)),
    ],
)
def test_writing_through_the_weight_is_refused(write: object) -> None:
    factor = AnchoredA(torch.ones(2, 3))
    with torch.no_grad(), pytest.raises(ailora.ModelError, match="cannot be written through"):
        write(factor.weight)  # type: ignore[operator]
    assert torch.equal(factor.stack(), torch.tensor([[1.0] * 3] * 2 + [[0.0] * 3] * 2))


def test_reading_the_weight_gives_ordinary_tensors() -> None:
    weight = AnchoredA(torch.ones(2, 3)).weight
    for value in (weight * 2, weight @ torch.ones(3, 1), weight.float(), weight[:1], weight.data * 1.0):
        assert type(value) is torch.Tensor
    assert (weight.shape, weight.dtype, weight.device.type) == ((4, 3), torch.float32, "cpu")
    assert weight.requires_grad


def test_compiled_forwards_have_no_graph_break() -> None:
    factor = AnchoredA(torch.randn(2, 3))
    explained = torch._dynamo.explain(lambda x: factor(x.to(factor.weight.dtype)))(torch.randn(5, 3))
    assert explained.graph_break_count == 0
