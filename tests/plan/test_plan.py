"""Plans: what is decided before a tensor is read."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import TaskType, get_peft_model_state_dict

import ailora
from ailora.lora.lora_config import build_lora_config
from ailora.plan import Plan, make_plan
from ailora.plan.task_type import TASKS
from tests.families import FAMILIES

BERT, LLAMA, VIT = (FAMILIES[name].model() for name in ("bert", "llama", "vit"))
ROLES = ("query", "key", "value", "output", "up", "down")


@given(
    policy=st.sampled_from(sorted(ailora.PRESETS)),
    form=st.sampled_from(["anchored", "stock", "residual"]),
    rank=st.integers(1, 16),
    alpha=st.none() | st.floats(0.01, 100),
    roles=st.none() | st.lists(st.sampled_from(ROLES), min_size=1, unique=True),
    rslora=st.booleans(),
)
def test_a_plan_travels_as_json(**options: Any) -> None:
    plan = make_plan(BERT, options.pop("policy"), **options)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    for adapter in plan.adapters:
        s = adapter.scaling
        alpha = options["alpha"] or adapter.rank
        assert s == pytest.approx(alpha / (math.sqrt(adapter.rank) if plan.options.rslora else adapter.rank))
        config = build_lora_config(plan, BERT)
        module = next(k for k in [*config.rank_pattern, ""] if not k or re.search(rf"{k}$", adapter.projection.module))
        r, alpha = config.rank_pattern.get(module, config.r), config.alpha_pattern.get(module, config.lora_alpha)
        assert r == adapter.file_rank
        assert alpha / (math.sqrt(r) if plan.options.rslora else r) == pytest.approx(s, rel=1e-15)


@given(
    rank=st.integers(1, 16),
    exponent=st.integers(-1000, 1000),
    rslora=st.booleans(),
    policy=st.sampled_from(["pissa", "lora"]),
)
def test_every_scaling_that_a_plan_allows_works_in_half_precision(
    rank: int, exponent: int, rslora: bool, policy: str
) -> None:
    """Factors of a weight of norm 1 survive in every dtype where the scaling is allowed; elsewhere it is refused."""
    alpha = math.ldexp(1.0, exponent)
    scaling = alpha / (math.sqrt(rank) if rslora else rank)
    if not 2**-14 <= scaling <= 65504:
        with pytest.raises(ailora.InputError, match=r"alpha must be a number between .* rank.*float16"):
            make_plan(BERT, policy, rank=rank, alpha=alpha, rslora=rslora)
        return
    (planned, *_) = make_plan(BERT, policy, rank=rank, alpha=alpha, rslora=rslora).adapters
    assert planned.scaling == pytest.approx(scaling)
    weight = torch.eye(32) / math.sqrt(32)
    factors = planned.init.factors(weight, rank, scaling=planned.scaling, generator=torch.Generator())
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        A, B = factors.A.to(dtype), factors.B.to(dtype)
        assert all(torch.isfinite(factor).all() for factor in (A, B))
        lossless = planned.scaling * (B.float() @ A.float())
        torch.testing.assert_close(lossless, planned.scaling * factors.B @ factors.A, rtol=0.02, atol=1e-4)


def test_a_meta_model_will_do() -> None:
    with torch.device("meta"):
        model = type(LLAMA)(LLAMA.config)
    assert make_plan(model, rank=4) == make_plan(LLAMA, rank=4)


def test_roles_narrow_every_preset_to_the_same_projections() -> None:
    plans = [make_plan(BERT, name, roles=["key", "value"]) for name in ailora.PRESETS]
    assert {tuple(a.projection.module for a in plan.adapters) for plan in plans} == {
        tuple(f"bert.encoder.layer.{i}.attention.self.{part}" for i in (0, 1) for part in ("key", "value"))
    }


def test_ranks_and_alphas_by_role_and_regex() -> None:
    plan = make_plan(BERT, rank={r"layer\.0": 2, "query": 4, "": 8}, alpha={"value": 16, "": 4})
    got = {a.projection.module[-24:]: (a.rank, a.alpha, a.scaling) for a in plan.adapters}
    assert list(got.values()) == [(2, 4, 2.0), (2, 16, 8.0), (4, 4, 1.0), (8, 16, 2.0)]


def test_the_task_type_follows_the_class() -> None:
    assert [make_plan(m).options.task_type for m in (BERT, LLAMA, VIT)] == ["SEQ_CLS", "CAUSAL_LM", None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, r"from 1 to 32, got 0 .bert\.encoder.*query \(32 x 32\)"),
        ({"rank": -1}, "rank must be .*, got -1"),
        ({"rank": 33}, "rank must be .*, got 33"),
        ({"rank": 2.5}, "rank must be .*, got 2.5"),
        ({"rank": {"query": 4}}, "no key of .* matches bert.*value"),
        ({"rank": {"query": 4, "valeu": 4}}, "'valeu' matches neither the role nor the name"),
        ({"rank": {"(": 4}}, "not a regular expression|nor a regular expression"),
        ({"alpha": 0}, r"alpha must be a number between 0\.00\d+ and \d+ for bert.*query.*, got 0 "),
        ({"alpha": -2.0}, "alpha must be .*, got -2.0"),
        ({"alpha": math.nan}, "alpha must be .*, got nan"),
        ({"policy": "pisa"}, "did you mean 'pissa'"),
        ({"policy": {"query": "minor"}, "roles": ["value"]}, "has no init for the role value"),
        ({"roles": ["gate"]}, "no projection has the role gate; this model has: query, key, value, output, up, down"),
        ({"roles": []}, "roles is empty"),
        ({"roles": "query"}, "roles must be a list"),
        ({"roles": 5}, "roles must be a list"),
        ({"rank": None}, "rank must be .*, got None"),
        ({"alpha": "8"}, "alpha must be .*, got '8'"),
        ({"couple_roles": "yes"}, "couple_roles must be True or False, got 'yes'"),
        ({"rslora": 1}, "rslora must be True or False, got 1"),
        ({"modules_to_save": "classifier"}, "modules_to_save must be a list of names"),
        ({"modules_to_save": 5}, "modules_to_save must be a list of names"),
        ({"role_names": ["query"]}, "role_names must map regular expressions to roles"),
        ({"role_names": {5: "query"}}, "role_names: 5 is not a regular expression"),
        ({"modules": "("}, "modules: .*is not a regular expression"),
        ({"modules": "decoder"}, "modules: 'decoder' matches no projection; the first projection is bert.encoder"),
        ({"modules": "layer.0", "roles": ["gate"]}, "no projection has the role gate"),
        ({"roles": ["querry"]}, "did you mean 'query'"),
        ({"form": "anchor"}, "did you mean 'anchored'"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"dora": True, "form": "residual"}, "dora cannot be combined with form 'residual'"),
        ({"modules_to_save": ["head"]}, "the model has no module 'head'"),
        ({"task_type": "SEQ_CLASS"}, "did you mean 'SEQ_CLS'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ailora.AiloraError, match=message):
        make_plan(BERT, options.pop("policy", "ailora"), **options)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ailora.InputError, match=r"expected an nn\.Module as model, got 'bert'"):
        make_plan("bert")


def test_rank_is_bounded_by_the_narrowest_projection() -> None:
    with pytest.raises(ailora.InputError, match=r"from 1 to 16, got 17 .*v_proj \(16 x 32\)"):
        make_plan(LLAMA, rank=17)


def test_what_is_not_a_plan_is_refused() -> None:
    data = make_plan(BERT).to_dict()
    for key in data.keys() - {"couple_roles"}:
        with pytest.raises(ailora.InputError):
            Plan.from_dict({k: v for k, v in data.items() if k != key})
    with pytest.raises(ailora.InputError):
        Plan.from_dict({**data, "unknown": 1})


def test_a_plan_from_before_an_option_is_read_without_it() -> None:
    plan = make_plan(BERT)
    data = {k: v for k, v in plan.to_dict().items() if k != "couple_roles"}
    assert Plan.from_dict(data) == plan
    assert Plan.from_dict({**data, "layer_replication": None}) == plan
    with pytest.raises(ailora.InputError, match="layer_replication is not supported"):
        Plan.from_dict({**data, "layer_replication": [[0, 2], [1, 2]]})


def test_the_task_types_are_pefts() -> None:
    assert set(TASKS) == {task.value for task in TaskType}


@pytest.mark.parametrize("form", ["anchored", "stock"])
def test_magnitudes_of_a_dora_count(form: str) -> None:
    model = ailora.adapt(FAMILIES["bert"].model(), rank=2, dora=True, form=form)
    plan = ailora.get_plan(model)
    trained = [p.numel() for name, p in model.named_parameters() if "lora_" in name and p.requires_grad]
    assert plan.trainable == sum(trained)
    assert f"{plan.trainable:,} trainable parameters" in str(plan)
    state = get_peft_model_state_dict(model)
    assert plan.file_bytes == sum(4 * tensor.numel() for name, tensor in state.items() if "lora_" in name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"couple_roles": "false"}, "flags must be true or false"),
        ({"modules_to_save": "head"}, "modules_to_save must be a list of module names, got 'head'"),
        ({"modules_to_save": None}, "modules_to_save must be a list of module names, got None"),
        ({"nonsense": 1}, "not a plan: unknown: nonsense"),
    ],
)
def test_a_plan_with_a_wrong_key_or_value_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ailora.InputError, match=message):
        Plan.from_dict(make_plan(BERT).to_dict() | changes)


def test_a_missing_key_is_named() -> None:
    data: dict[str, Any] = make_plan(BERT).to_dict()
    del data["adapters"][0]["rank"]
    with pytest.raises(ailora.InputError, match="not a plan: key 'rank' is missing"):
        Plan.from_dict(data)
    del data["form"]
    with pytest.raises(ailora.InputError, match="not a plan: missing: form"):
        Plan.from_dict(data)


def test_a_saved_module_whose_name_peft_would_read_as_an_expression_is_refused() -> None:
    model = torch.nn.ModuleDict({"wq": torch.nn.Linear(8, 8), "head+1": torch.nn.Linear(8, 2)})
    with pytest.raises(ailora.InputError, match=r"modules_to_save: 'head\+1' has characters"):
        make_plan(model, "pissa", rank=2, roles=["query"], role_names={"wq": "query"}, modules_to_save=["head+1"])


def test_a_rank_of_null_is_named() -> None:
    with pytest.raises(ailora.InputError, match=r"rank must be a whole number from 1 to 32, got None"):
        make_plan(BERT, rank={"query": None, "value": 2})  # type: ignore[dict-item]


def test_numbers_of_numpy_are_numbers() -> None:
    plan = make_plan(BERT, rank=np.int64(4), alpha=np.float32(8), dropout=np.float64(0.5))  # type: ignore[arg-type]
    assert plan == make_plan(BERT, rank=4, alpha=8, dropout=0.5)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
