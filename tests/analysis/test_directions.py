"""Where in the spectrum of a weight its update and its first gradient lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ailora.analysis import analyze
from ailora.analysis.direction_profile import SingularDirections, direction_profile, enrichment
from ailora.analysis.table_ops import Row
from ailora.analysis.weight_update import DenseUpdate, LowRankUpdate
from ailora.plots.analysis_charts import _direction_line, build_analysis_charts
from ailora.recipes.config.loader import load_config
from ailora.recipes.registry import run
from tests.analysis.conftest import Made
from tests.recipes.language import save_llama, write_facts

RANK = 3


def profile(W: torch.Tensor, dW: torch.Tensor) -> list[Row]:
    return list(direction_profile(DenseUpdate(dW.double()), SingularDirections.from_weight(W), RANK))


@pytest.mark.parametrize("shape", [(24, 24), (12, 40), (40, 12)])
def test_bins_hold_all_energy_once(shape: tuple[int, int]) -> None:
    """Square, wide (a grouped value) and tall."""
    torch.manual_seed(0)
    W, dW = torch.randn(shape), torch.randn(shape)
    U, _, Vh = np.linalg.svd(W.double().numpy(), full_matrices=False)
    energies = {
        "left": ((U.T @ dW.double().numpy()) ** 2).sum(axis=1),
        "right": ((dW.double().numpy() @ Vh.T) ** 2).sum(axis=0),
    }
    total = float(dW.double().square().sum())
    rows = profile(W, dW)
    for side, expected in energies.items():
        bins = [row for row in rows if row["side"] == side]
        assert sum(row["share"] for row in bins) == pytest.approx(1)
        assert sum(row["chance"] for row in bins) == pytest.approx(1)
        for row in bins:
            if row["band"] != "outside":
                assert row["share"] == pytest.approx(expected[row["start"] : row["stop"]].sum() / total)
        stops = [row["stop"] for row in sorted(bins, key=lambda row: row["start"])]
        assert stops[-1] == (shape[0] if side == "left" else shape[1])


def test_one_direction_is_found_where_it_is() -> None:
    torch.manual_seed(0)
    W = torch.randn(24, 24)
    U, _, Vh = torch.linalg.svd(W.double())
    rows = profile(W, torch.outer(U[:, 0], Vh[-1]))
    shares = {(row["side"], row["band"]): row["share"] for row in rows if row["band"] != "middle"}
    assert shares == pytest.approx({("left", "principal"): 1, ("left", "minor"): 0} | {
        ("right", "principal"): 0, ("right", "minor"): 1
    }, abs=1e-12)  # fmt: skip


def test_a_product_has_the_profile_of_its_matrix() -> None:
    torch.manual_seed(0)
    W, B, A = torch.randn(12, 40), torch.randn(12, 2).double(), torch.randn(2, 40).double()
    directions = SingularDirections.from_weight(W)
    product = list(direction_profile(LowRankUpdate(B, A), directions, RANK))
    dense = list(direction_profile(DenseUpdate(B @ A), directions, RANK))
    assert [row["share"] for row in product] == pytest.approx([row["share"] for row in dense], abs=1e-12)


def test_no_update_has_no_profile() -> None:
    rows = profile(torch.randn(12, 40), torch.zeros(12, 40))
    assert all(np.isnan(row["share"]) for row in rows)


def test_the_interval_of_very_unequal_layers_is_finite() -> None:
    """Two layers have a t-quantile of 12.7, and the end of an interval of logarithms may exceed 709."""
    mean, low, high = enrichment(pd.DataFrame({"share": [1e-60, 0.5], "chance": [0.1, 0.1]}))
    assert 0 < low < mean < high < np.inf


def test_layers_of_different_shapes_share_the_bins_of_a_line() -> None:
    """The minor bin of a small weight has the indices of a middle bin of a large weight."""
    torch.manual_seed(0)
    rows: list[Row] = []
    for layer, size in enumerate((24, 24, 48)):
        W = torch.randn(size, size)
        U, _, Vh = torch.linalg.svd(W.double())
        rows += [{"module": f"{layer}.q", **row} for row in profile(W, torch.outer(U[:, -1], Vh[-1]))]
    table = pd.DataFrame(rows)
    line = _direction_line(table.loc[table["side"] == "left"], "dW, query", 0)
    assert len(line.x) == 10
    assert line.x[-1] == pytest.approx((2 * (1 - 1.5 / 24) + (1 - 1.5 / 48)) / 3)
    # Geometric mean of 1 / (3 / 24), twice, and 1 / (3 / 48).
    assert line.y[-1] == pytest.approx((8 * 8 * 16) ** (1 / 3))
    assert max(line.y[:-1]) < 1e-6


def test_random_directions_give_chance(models: Made) -> None:
    """The full models of the tests were moved at random; the interval over four layers holds 1 at every bin."""
    made = analyze(str(models("llama")), [models("llama-full")], rank=RANK, directions=True)
    table = made.directions
    assert set(table["update"]) == {"dW"}
    assert any("not a run" in note for note in made.info["notes"])
    for (role, side), rows in table.groupby(["role", "side"]):
        for _, layers in rows[rows["band"] != "outside"].groupby("start"):
            factor, _, _ = enrichment(layers)
            assert 0.6 < factor < 1.6, (role, side)
    assert any("times chance" in line for line in made.info["findings"])
    assert {"directions-1-left", "directions-1-right"} <= {chart.name for chart in build_analysis_charts(made)}


def test_the_gradient_is_the_first_step_of_gradient_descent(tmp_path: Path) -> None:
    """One step of SGD on one batch moves a weight by its gradient: both profiles are the same."""
    base, facts = save_llama(tmp_path / "base"), write_facts(tmp_path, train=8, validation=4)
    config = {
        "recipe": "causal_lm",
        "model": base,
        "adapter": {"policy": "full"},
        "data": {**facts, "prompt": "{mr} =>", "completion": " {ref}"},
        "training": {
            "optim": "sgd",
            "lr_scheduler_type": "constant",
            "learning_rate": 0.1,
            "max_grad_norm": 0.0,
            "max_steps": 1,
            "per_device_train_batch_size": 8,
            "disable_tqdm": True,
        },
        "output": str(tmp_path / "run"),
    }
    run(load_config(config))
    table = analyze(base, [tmp_path / "run"], rank=RANK, directions=True).directions
    shares = {update: rows["share"].to_numpy() for update, rows in table.groupby("update")}
    assert set(shares) == {"dW", "gradient"}
    # dW is a difference of float32 weights: relative to |dW|, their rounding is about eps |W| / |dW|.
    np.testing.assert_allclose(shares["gradient"], shares["dW"], atol=1e-3)
