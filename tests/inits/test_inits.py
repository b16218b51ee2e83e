"""Inits and policies."""

from __future__ import annotations

import pytest
import torch

import ailora
from ailora.inits import Size, parse_init, parse_policy
from ailora.roles import Role


def weight(out: int = 20, in_: int = 12) -> torch.Tensor:
    return torch.randn(out, in_, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("band", ailora.Band)
@pytest.mark.parametrize("scaling", [0.5, 2.0])
def test_a_spectral_start_is_the_bands_part_of_the_weight(band: ailora.Band, scaling: float) -> None:
    W = weight()
    made = ailora.Spectral(band).factors(W, 3, scaling=scaling, generator=torch.Generator())
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    rows = slice(0, 3) if band == "principal" else slice(9, 12)
    expected = (U[:, rows] * S[rows]) @ Vh[rows]
    assert torch.allclose(scaling * made.B.double() @ made.A.double(), expected, atol=1e-5)
    # The singular values are split evenly.
    assert torch.allclose(made.A.norm(dim=1), made.B.norm(dim=0), rtol=1e-5)


def test_unit_size_gives_plain_loras_row_norm() -> None:
    init = ailora.Spectral(ailora.Band.MINOR, Size.UNIT)
    made = init.factors(weight(400, 300), 8, scaling=2.0, generator=torch.Generator())
    kaiming = ailora.Kaiming().factors(weight(400, 300), 64, scaling=2.0, generator=torch.Generator())
    assert torch.allclose(made.A.norm(dim=1), torch.full((8,), 3**-0.5), rtol=1e-5)
    # Mean of 64 row norms of 300 uniform entries: standard error below 0.3 %.
    assert kaiming.A.norm(dim=1).mean().item() == pytest.approx(3**-0.5, rel=0.02)


def test_plain_lora_draws_from_the_generator_alone() -> None:
    drawn = [
        ailora.Kaiming().factors(weight(), 4, scaling=1.0, generator=torch.Generator().manual_seed(seed)).A
        for seed in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert drawn[0].abs().max() <= 12**-0.5


def test_the_presets() -> None:
    words = {
        name: tuple(policy.init_for(role).to_dict()["init"] for role in (Role.QUERY, Role.VALUE))
        for name, policy in ailora.PRESETS.items()
    }
    assert words == {
        "ailora": ("principal", "minor"),
        "reversed": ("minor", "principal"),
        "pissa": ("principal", "principal"),
        "milora": ("minor", "minor"),
        "lora": ("lora", "lora"),
    }
    assert all(policy.default_roles == (Role.QUERY, Role.VALUE) for policy in ailora.PRESETS.values())


def test_a_policy_from_yaml() -> None:
    policy = parse_policy({"query": "principal", "key": "none", "value": {"init": "minor", "size": "unit"}})
    assert policy.default_roles == (Role.QUERY, Role.VALUE)
    assert policy.init_for(Role.KEY) is None
    assert policy.init_for(Role.VALUE) == ailora.Spectral(ailora.Band.MINOR, Size.UNIT)


@pytest.mark.parametrize("name", ailora.PRESETS)
def test_policies_read_back_what_they_describe(name: str) -> None:
    assert parse_policy(ailora.PRESETS[name].to_dict()) == ailora.PRESETS[name]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ailor", "unknown policy 'ailor' .did you mean 'ailora'"),
        ({"qery": "minor"}, "unknown role 'qery'"),
        ({"query": "principle"}, "unknown init 'principle' .did you mean 'principal'"),
        ({"query": {"init": "minor", "sise": "unit"}}, "unknown option of init 'minor' 'sise'"),
        ({"query": {"init": "minor", "size": "huge"}}, "unknown size 'huge'; allowed: singular, unit"),
        ({"query": "none"}, "adapts no role"),
        (
            {"by_role": {"query": "none"}, "default": "principal"},
            "excludes a role by 'none', but the default init",
        ),
        (3, "policy must be the name of a preset or a mapping"),
    ],
)
def test_bad_policies_are_refused(spec: object, message: str) -> None:
    with pytest.raises(ailora.InputError, match=message):
        parse_policy(spec)  # type: ignore[arg-type]


def test_an_init_passes_through() -> None:
    assert parse_init(ailora.Kaiming()) == ailora.Kaiming()
    assert parse_init("none") is None


@pytest.mark.parametrize("init", [ailora.Kaiming(), ailora.Spectral(ailora.Band.MINOR)])
def test_the_default_device_does_not_matter(init: ailora.Init) -> None:
    W = weight()
    made = init.factors(W, 4, scaling=1.0, generator=torch.Generator().manual_seed(1))
    with torch.device("meta"):
        again = init.factors(W, 4, scaling=1.0, generator=torch.Generator().manual_seed(1))
    assert torch.equal(made.A, again.A)
    assert int(again.floored) == 0


@pytest.mark.parametrize("exponent", [70, -86])
def test_weights_whose_norm_leaves_float32_have_factors_of_their_size(exponent: int) -> None:
    """Squares of the entries overflow or underflow."""
    init = ailora.Spectral(ailora.Band.PRINCIPAL)
    made = init.factors(weight() * 2.0**exponent, 3, scaling=1.0, generator=torch.Generator())
    expected = init.factors(weight(), 3, scaling=1.0, generator=torch.Generator())
    assert torch.allclose(made.B / 2.0 ** (exponent // 2), expected.B, atol=1e-5)
    assert int(made.floored) == 0
