"""Operations and times that are estimated before a decomposition is made."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ailora.spectral import Band, flops, truncated_svd


@pytest.mark.parametrize("shape", [(1536, 1536), (1280, 2560)])
def test_products_are_counted_within_a_factor(shape: tuple[int, int]) -> None:
    """Block Lanczos is nearly all products, which torch can count."""
    weight = torch.randn(shape) / shape[1] ** 0.5
    weight += sum(
        torch.outer(torch.randn(shape[0]), torch.randn(shape[1])) / (4 + i) / shape[1] ** 0.5 for i in range(12)
    )
    with FlopCounterMode(display=False) as counter:
        truncated_svd(weight, 8, Band.PRINCIPAL)
    assert 0.2 < flops.estimate_flops(shape, 8, Band.PRINCIPAL) / counter.get_total_flops() < 5


@pytest.mark.parametrize("band", Band)
def test_more_costs_more(band: Band) -> None:
    for sides in ((64, 512, 1024), (2048, 4096)):  # a method each
        costs = [flops.estimate_flops((side, side), 8, band) for side in sides]
        assert costs == sorted(costs)
    assert flops.estimate_flops((4096, 4096), 64, band) > flops.estimate_flops((4096, 4096), 8, band)
    assert flops.estimate_flops((1024, 4096), 8, band) == flops.estimate_flops((4096, 1024), 8, band)


def test_a_faster_machine_takes_less() -> None:
    speed = flops.measure_matmul_speed(torch.device("cpu"))
    assert speed > 1e8
    one, two = (
        flops.estimate_seconds((512, 512), 8, Band.MINOR, dtype=torch.float32, speed=factor * speed)
        for factor in (1, 2)
    )
    assert one == pytest.approx(2 * two)
