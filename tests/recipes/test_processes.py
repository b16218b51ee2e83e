"""Work that the processes of a run share out comes back whole and in order."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ailora.recipes import processes


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 30), st.integers(1, 8))
def test_shares_are_as_large_and_make_up_the_whole(monkeypatch: pytest.MonkeyPatch, items: int, count: int) -> None:
    shares = []
    for rank in range(count):
        state = SimpleNamespace(process_index=rank, num_processes=count)
        monkeypatch.setattr(processes, "PartialState", lambda state=state: state)
        shares.append(processes.shared_out(list(range(items))))
    assert len({len(share) for share in shares}) == 1
    made = [[item for item, counts in share if counts] for share in shares]
    monkeypatch.setattr(processes, "gather_object", lambda _: made)
    assert processes.collected(made[0]) == list(range(items))


def test_alone_all_is_mine() -> None:
    assert processes.is_main()
    assert processes.shared_out("ab") == [("a", True), ("b", True)]
    assert processes.collected(["x", "y"]) == ["x", "y"]
