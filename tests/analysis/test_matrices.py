"""Deltas and spectra against plain numpy on the whole weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ailora.analysis.weight_stats import effective_rank, measure_spectrum, measure_weights
from ailora.checkpoints import merge
from tests.analysis.conftest import WIDTH, Made, load_all, make_settings

SETTINGS = make_settings(rank=3, top=5)


def weights(folder: Path, role: str) -> list[np.ndarray]:
    """The weights of a role (out, in) in float64, read without this package."""
    tensors = {name: tensor.double().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    if any("c_attn" in name for name in tensors):
        place = {"query": 0, "key": 1, "value": 2}[role]
        fused = [tensors[name] for name in sorted(tensors) if name.endswith("attn.c_attn.weight")]
        return [weight.T[place * WIDTH : (place + 1) * WIDTH] for weight in fused]
    return [tensors[name] for name in sorted(tensors) if name.endswith(f"{role[0]}_proj.weight")]


def measured(models: Made, base: str, *after: Path) -> tuple[list[dict], list[dict], list[str]]:
    opened, others = load_all(models, base, SETTINGS, *after)
    found = measure_weights(opened, others, SETTINGS)
    return found.deltas, found.spectra, found.notes


@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_full_fine_tuning_against_numpy(models: Made, base: str) -> None:
    deltas, spectra, notes = measured(models, base, models(f"{base}-full"))
    assert not notes
    assert len(deltas) == 8
    assert len(spectra) == 16
    for role in ("query", "value"):
        before, after = weights(models(base), role), weights(models(f"{base}-full"), role)
        rows = [row for row in deltas if row["role"] == role]
        assert [row["layer"] for row in rows] == [0, 1, 2, 3]
        for row, W, changed in zip(rows, before, after, strict=True):
            dW = changed - W
            U, _, Vh = np.linalg.svd(W, full_matrices=False)
            s = np.linalg.svd(dW, compute_uv=False)
            p = s / s.sum()
            energy = (dW**2).sum()
            expected = {
                "norm": np.sqrt(energy),
                "relative": np.sqrt(energy / (W**2).sum()),
                "effective_rank": np.exp(-(p * np.log(p)).sum()),
                "stable_rank": energy / s[0] ** 2,
                "left_principal": ((U[:, :3].T @ dW) ** 2).sum() / energy,
                "right_principal": ((dW @ Vh[:3].T) ** 2).sum() / energy,
                "left_minor": ((U[:, -3:].T @ dW) ** 2).sum() / energy,
                "right_minor": ((dW @ Vh[-3:].T) ** 2).sum() / energy,
                "left_chance": 3 / W.shape[0],
                "right_chance": 3 / W.shape[1],
            }
            # Singular vectors come in float32: the subspaces are exact to some 1e-5.
            assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-4)
            assert (row["out_features"], row["in_features"]) == W.shape


@pytest.mark.parametrize("base", ["llama", "gpt2"])
def test_an_adapter_is_what_merging_it_gives(models: Made, base: str, tmp_path: Path) -> None:
    merge(str(models(base)), models(f"{base}-adapter"), tmp_path / "merged")
    deltas, spectra, _ = measured(models, base, models(f"{base}-adapter"), tmp_path / "merged")
    assert len(deltas) == 16
    for role in ("query", "value"):
        for layer in range(4):
            ours, merged = (row for row in deltas if row["role"] == role and row["layer"] == layer)
            # Merging rounds W + dW to float32: 6e-8 of W, some 3e-6 of dW, where dW / W is 0.02 or more.
            assert ours["relative"] > 0.02
            exact = [key for key, value in ours.items() if isinstance(value, float) and key != "effective_rank"]
            assert {key: merged[key] for key in exact} == pytest.approx({key: ours[key] for key in exact}, rel=1e-4)
            # Rounding has full rank, with tiny singular values, which its entropy sees a little.
            assert merged["effective_rank"] == pytest.approx(ours["effective_rank"], rel=1e-3)
            assert ours["effective_rank"] < 8.0001
    same = [row for row in spectra if row["model"] != "base" and row["layer"] == 0 and row["role"] == "query"]
    assert same[0]["values"] == pytest.approx(same[1]["values"], rel=1e-4)
    assert same[0]["intruders"] == same[1]["intruders"]
    assert np.isnan(same[1]["moved_A"])


def test_distance_from_the_anchor_against_the_file(models: Made) -> None:
    _, spectra, _ = measured(models, "llama", models("llama-adapter"))
    tensors = load_file(models("llama-adapter") / "adapter_model.safetensors")
    A = next(t for name, t in tensors.items() if "layers.1" in name and "q_proj.lora_A" in name).double()
    B = next(t for name, t in tensors.items() if "layers.1" in name and "q_proj.lora_B" in name).double()
    A0, dA, dB, B0 = A[:4], A[4:], B[:, :4], B[:, 4:] - B[:, :4]
    row = next(r for r in spectra if r["model"] != "base" and r["layer"] == 1 and r["role"] == "query")
    expected = [(B0 @ A0).norm(), dA.norm() / A0.norm(), dB.norm() / B0.norm()]
    assert [row["anchor"], row["moved_A"], row["moved_B"]] == pytest.approx([float(x) for x in expected], rel=1e-5)


def test_a_spectrum_in_numbers() -> None:
    numbers = measure_spectrum(torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64), rank=1)
    energy = 9 + 4 + 1 + 0.25
    assert numbers["principal"] == pytest.approx(9 / energy)
    assert numbers["middle"] == pytest.approx(5 / energy)
    assert numbers["minor"] == pytest.approx(0.25 / energy)
    assert numbers["condition"] == 6
    assert numbers["stable_rank"] == pytest.approx(energy / 9)
    assert numbers["values"] == [3.0, 2.0, 1.0, 0.5]
    long = measure_spectrum(torch.arange(4000, 0, -1, dtype=torch.float64), rank=8)
    assert len(long["values"]) <= 64
    assert (long["indices"][0], long["indices"][-1]) == (0, 3999)
    assert long["values"] == [4000.0 - i for i in long["indices"]]


@pytest.mark.parametrize(("values", "rank"), [([2.0, 2.0, 2.0, 2.0], 4), ([5.0, 0.0], 1), ([0.0, 0.0], 0)])
def test_effective_rank_of_equal_and_of_no_directions(values: list[float], rank: float) -> None:
    assert effective_rank(torch.tensor(values, dtype=torch.float64)) == pytest.approx(rank)
