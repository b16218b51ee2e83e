"""The rows of the roles in a fused weight."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ailora.errors import ModelError
from ailora.roles import FusedLayout, Role, fused_splits

QKV = (Role.QUERY, Role.KEY, Role.VALUE)
sizes = st.integers(1, 5)


@given(
    groups=sizes,
    parts=st.lists(st.tuples(st.sampled_from(Role), sizes), min_size=1, max_size=4, unique_by=lambda p: p[0]),
)
def test_the_roles_partition_the_rows(groups: int, parts: list[tuple[Role, int]]) -> None:
    layout = FusedLayout(groups, tuple(parts))
    rows = [row for role, _ in parts for start, stop in layout.rows(role) for row in range(start, stop)]
    assert sorted(rows) == list(range(layout.out_features))
    for role, size in parts:
        ranges = layout.rows(role)
        assert sum(stop - start for start, stop in ranges) == groups * size
        assert all(a[1] < b[0] for a, b in pairwise(ranges))


def test_a_role_that_is_not_there_has_no_rows() -> None:
    assert FusedLayout(2, ((Role.KEY, 3),)).rows(Role.QUERY) == ()


@pytest.mark.parametrize(
    ("split", "config", "rows", "expected"),
    [
        ("equal", {}, 12, "query 4 + key 4 + value 4"),
        ("grouped", {"num_attention_heads": 4, "num_key_value_heads": 1}, 12, "query 8 + key 2 + value 2"),
        ("grouped", {"n_heads": 4, "attn_config": SimpleNamespace(kv_n_heads=2)}, 16, "query 8 + key 4 + value 4"),
        (
            "chatglm",
            {"num_attention_heads": 4, "multi_query_attention": True, "multi_query_group_num": 2},
            16,
            "query 8 + key 4 + value 4",
        ),
        # Without shared keys and values, ChatGLM's modeling file views the rows as (heads, 3 x head size).
        (
            "chatglm",
            {"num_attention_heads": 2, "multi_query_attention": False, "multi_query_group_num": 1},
            12,
            "2 x (query 2 + key 2 + value 2)",
        ),
        ("per_head", {"n_head": 2}, 12, "2 x (query 2 + key 2 + value 2)"),
        ("quarters", {}, 24, "4 x (query 2 + key 2 + value 2)"),
        ("per_key_value_head", {"n_head": 4, "num_kv_heads": 2}, 16, "2 x (query 4 + key 2 + value 2)"),
        ("latent", {"n_head": 2, "qk_nope_head_dim": 3, "v_head_dim": 2}, 10, "2 x (key 3 + value 2)"),
    ],
)
def test_splits(split: str, config: dict[str, Any], rows: int, expected: str) -> None:
    roles = (Role.KEY, Role.VALUE) if split == "latent" else QKV
    layout = getattr(fused_splits, split)(roles, SimpleNamespace(**config), rows)
    assert str(layout) == expected
    assert layout.out_features == rows


@pytest.mark.parametrize(
    ("split", "config", "rows", "message"),
    [
        ("equal", {}, 10, "10 rows do not divide"),
        ("grouped", {}, 12, "names no head count; looked for num_attention_heads"),
        ("grouped", {"n_head": 4, "num_kv_heads": 2}, 12, "12 rows do not divide"),
        ("per_key_value_head", {"n_head": 4, "num_kv_heads": 3}, 12, "4 heads cannot share 3"),
        ("latent", {"n_head": 2, "qk_nope_head_dim": 3, "v_head_dim": 2}, 11, "11 rows do not fit 2 x"),
    ],
)
def test_rows_that_do_not_fit_are_refused(split: str, config: dict[str, Any], rows: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        getattr(fused_splits, split)(QKV if split != "latent" else QKV[1:], SimpleNamespace(**config), rows)
