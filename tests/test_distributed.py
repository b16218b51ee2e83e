"""Work that ranks share out comes back whole and in order."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ailora import distributed


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 30), st.integers(1, 8))
def test_shares_are_as_large_and_make_up_the_whole(monkeypatch: pytest.MonkeyPatch, items: int, count: int) -> None:
    monkeypatch.setattr(distributed, "process_count", lambda: count)
    shares = []
    for rank in range(count):
        monkeypatch.setattr(distributed, "process_index", lambda rank=rank: rank)
        shares.append(distributed.split_between_processes(list(range(items))))
    assert len({len(share) for share in shares}) == 1
    results = [[item for item, counts in share if counts] for share in shares]
    monkeypatch.setattr(distributed, "gather_object", lambda _: results)
    assert distributed.gather(results[0]) == list(range(items))


def test_alone_all_is_mine() -> None:
    assert distributed.is_main()
    assert distributed.local_shard("ab") == ["a", "b"]
    assert distributed.split_between_processes("ab") == [("a", True), ("b", True)]
    assert distributed.gather(["x", "y"]) == ["x", "y"]
    assert distributed.all_reduce_sum({"n": 2.0}) == {"n": 2.0}
    assert distributed.compute_and_broadcast_from_rank0(lambda: 3) == 3
    with distributed.init_process_group_if_launched():
        assert distributed.process_count() == 1
