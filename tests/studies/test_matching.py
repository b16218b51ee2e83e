"""Ranks at which methods train about as many parameters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ailora import AiloraError, InputError
from ailora.model_loading import load_on_meta
from ailora.recipes.config.loader import load_config
from ailora.recipes.config.method import FullFineTuning
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.training.setup import plan_adapter
from ailora.studies.parameter_budget import count_trainable, match_trainable_parameters
from ailora.studies.trial import Condition
from tests.studies.sample_trials import make_design


def run(**adapter: Any) -> RunConfig:
    data = {"train": "a.tsv", "validation": "b.tsv", "text": ["sentence"]}
    raw = {"recipe": "classification", "model": "builtin:minilm", "data": data, "output": "out"}
    return load_config(raw | {"adapter": {"policy": "lora", **adapter}})


def trained(config: RunConfig) -> int:
    """How many parameters its adapter trains, heads left out."""
    return plan_adapter(config, load_on_meta(config.model, config.task_type)).trainable


def test_half_the_modules_have_twice_the_rank() -> None:
    one, both = run(roles=["query"], rank=4), run(roles=["query", "value"], rank=4)
    assert match_trainable_parameters(one, both).adapter.rank == 8
    assert match_trainable_parameters(both, one).adapter.rank == 2
    assert trained(match_trainable_parameters(one, both)) == trained(both)


def test_the_method_s_own_rank_does_not_matter_and_nothing_else_changes() -> None:
    both = run(roles=["query", "value"], rank=4)
    for rank in (1, 3, 64):
        config = run(roles=["query"], rank=rank, dropout=0.1)
        made = match_trainable_parameters(config, both)
        assert made.adapter.rank == 8
        assert made.model_copy(update={"adapter": config.adapter}) == config
        assert made.adapter.model_copy(update={"rank": rank}) == config.adapter


def test_the_baseline_stays_as_it_is() -> None:
    baseline = run(roles=["query", "value"], rank=5)
    assert match_trainable_parameters(baseline, baseline) == baseline


def test_ranks_by_role_keep_their_proportions() -> None:
    config = run(roles=["query", "value"], rank={"query": 6, "value": 2})
    assert match_trainable_parameters(config, run(roles=["query", "value"], rank=8)).adapter.rank == {
        "query": 12,
        "value": 4,
    }


def test_full_fine_tuning_is_left_alone() -> None:
    full, lora = run(policy="full"), run(roles=["query"], rank=4)
    assert match_trainable_parameters(full, lora) == full
    assert match_trainable_parameters(lora, full) == lora


def test_a_rank_is_never_below_one() -> None:
    everywhere = run(rank={"query": 64, "value": 1}, roles=["query", "value"])
    assert match_trainable_parameters(everywhere, run(roles=["query"], rank=1)).adapter.rank == {"query": 1, "value": 1}
    assert match_trainable_parameters(run(rank=8), run(roles=["query"], rank=1)).adapter.rank == 1


@settings(deadline=None, max_examples=8)
@given(st.integers(1, 32), st.integers(1, 32), st.sampled_from([["query"], ["query", "key"], ["query", "output"]]))
def test_no_other_rank_trains_a_number_closer_to_the_baseline_s(rank: int, budget: int, roles: list[str]) -> None:
    baseline = run(roles=["query", "value"], rank=budget)
    made = match_trainable_parameters(run(roles=roles, rank=rank), baseline)
    assert isinstance(made.adapter.rank, int)
    off = abs(trained(made) - trained(baseline))
    for near in {max(1, made.adapter.rank - 1), made.adapter.rank + 1}:
        assert off <= abs(trained(run(roles=roles, rank=near)) - trained(baseline))


def test_a_match_that_needs_a_rank_beyond_the_weights_is_refused_before_anything_runs() -> None:
    config = run(roles=["query"], rank=1)
    with pytest.raises(AiloraError, match="rank"):
        match_trainable_parameters(config, run(roles=["query", "key", "value", "output"], rank=256))


def test_a_function_of_the_user_s_cannot_be_matched() -> None:
    with pytest.raises(
        InputError, match=r"match_parameters: the number of parameters that the function .*:plain trains is unknown"
    ):
        match_trainable_parameters(run(policy="tests.recipes.user_methods:plain"), run(rank=4))


def test_a_study_matches_at_every_setting_of_its_grid() -> None:
    narrow = {"narrow": {"method": "lora", "adapter.roles": ["query"]}}
    base = {**make_design().config.base, "adapter": {"roles": ["query", "value"]}}  # type: ignore[dict-item]
    design = make_design(
        base=base, methods=["lora", narrow, "full"], grid={"adapter.rank": [2, 4]}, match_parameters=True
    )
    ranks = {c.setting: design.base_config(c).adapter.rank for c in design.conditions if c.method == "narrow"}
    assert ranks == {(("adapter.rank", "2"),): 4, (("adapter.rank", "4"),): 8}
    assert design.base_config(Condition("base", "full")).adapter.method == FullFineTuning()


def test_frozen_factors_do_not_count() -> None:
    """MiCA trains only A, half of the parameters of a plain LoRA on square weights."""
    made = match_trainable_parameters(run(policy="peft:mica", rank=4), run(rank=4))
    assert made.adapter.rank == 8
    assert count_trainable(made) == count_trainable(run(rank=4))


def test_magnitudes_do_not_scale_with_the_rank() -> None:
    dora, lora = run(rank=8, dora=True), run(rank=8)
    made = match_trainable_parameters(dora, lora)
    assert isinstance(made.adapter.rank, int)
    off = abs(count_trainable(made) - count_trainable(lora))
    for near in (made.adapter.rank - 1, made.adapter.rank + 1):
        assert off <= abs(count_trainable(run(rank=near, dora=True)) - count_trainable(lora))
    assert match_trainable_parameters(run(rank=3, dora=True), dora).adapter.rank == 8
