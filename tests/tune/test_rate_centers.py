"""Rates spread around that of plain LoRA, shifted for each init as far as the curvature of its loss suggests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers as tf

from ailora import InputError, ModelError
from ailora.optim.curvature import Curvature, RateMultiple
from ailora.recipes.config.loader import load_config
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.suggest_lr import RoleRate, Suggestion
from ailora.tune import rate_centers
from ailora.tune.rate_centers import RateCenters, find_rate_centers
from ailora.tune.search_space import SearchSpace
from ailora.tune.tune_request import plain_config
from ailora.tune.tune_run import open_search

#: Rows that a run must train on, so that suggestions cost little beside it.
MANY_ROWS = 10**7


def _suggestion(*multiples: float, spread: float = 0.0) -> Suggestion:
    """A suggestion with a role for each multiple."""
    ours, plain = (Curvature(value, 0.0, spread, iterations=12, batches=2) for value in (2.0, 1.0))
    roles = {str(n): RoleRate(ours, plain, RateMultiple(m, 0.0), m) for n, m in enumerate(multiples)}
    return Suggestion(max(multiples), roles, 0.0)


class Suggestions(dict[str, Suggestion]):
    """Suggestions by policy, in the place of measurements; a policy without one cannot be measured."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def suggest(self, config: RunConfig, lora_rate: float, *, batches: int, rows: int) -> Suggestion:
        assert lora_rate == 1.0
        policy = str(config.adapter.policy)
        self.asked.append(f"{policy} {config.adapter.roles}")
        if policy not in self:
            raise ModelError("no second derivatives")
        return self[policy]


@pytest.fixture
def suggested(monkeypatch: pytest.MonkeyPatch) -> Suggestions:
    suggestions = Suggestions()
    monkeypatch.setattr(rate_centers, "suggest", suggestions.suggest)
    return suggestions


def _space(tuned: dict[str, Any], **tune: Any) -> SearchSpace:
    config = load_config(tuned | {"tune": {"policy": ["lora", "ailora"], "roles": [["query", "value"]]} | tune})
    return SearchSpace(plain_config(config))


def _find(space: SearchSpace, rows: int = MANY_ROWS) -> RateCenters:
    return find_rate_centers(space, rows_trained=rows, spare_runs=4.0)


def test_a_start_with_a_flatter_loss_is_tried_at_larger_rates(tuned: dict[str, Any], suggested: Suggestions) -> None:
    suggested["ailora"] = _suggestion(2.0, 8.0)
    centers = _find(_space(tuned))
    # The geometric mean over roles, times the rate of the file.
    assert centers.centers == pytest.approx([5e-3, 4 * 5e-3])
    assert 0 < centers.cost_runs < 0.25
    assert centers.origin.startswith("Learning rates around 0.005, shifted for each init")


def test_the_rate_of_plain_lora_is_a_thousandth_without_one_in_the_file(
    tuned: dict[str, Any], suggested: Suggestions
) -> None:
    del tuned["training"]["learning_rate"]
    centers = _find(_space(tuned, policy=["lora"]))
    assert centers.centers == [1e-3]
    assert centers.origin == "Learning rates around 0.001."


def test_a_multiple_is_measured_once_for_all_ranks(tuned: dict[str, Any], suggested: Suggestions) -> None:
    suggested["ailora"] = _suggestion(2.0)
    space = _space(tuned, policy=["ailora"], rank=[2, 4], roles=[["query"], ["query", "value"]])
    assert _find(space).centers == pytest.approx([1e-2] * 4)
    assert suggested.asked == ["ailora ['query']", "ailora ['query', 'value']"]


@pytest.mark.parametrize(
    ("suggestion", "multiple"),
    [
        (_suggestion(1e4), 10.0),
        (_suggestion(1e-4), 0.1),
        # Both curvatures lie within their errors: the measurement says nothing.
        (_suggestion(4.0, spread=3.0), 1.0),
        (None, 1.0),
    ],
    ids=["far above", "far below", "not told apart", "not measurable"],
)
def test_a_doubtful_multiple_moves_rates_by_at_most_a_decade(
    tuned: dict[str, Any], suggested: Suggestions, suggestion: Suggestion | None, multiple: float
) -> None:
    if suggestion is not None:
        suggested["ailora"] = suggestion
    centers = _find(_space(tuned, policy=["ailora"]))
    assert centers.centers == pytest.approx([multiple * 5e-3])
    # The origin of the rates does not claim a measurement that failed.
    assert ("shifted for each init" in centers.origin) == (multiple != 1)
    assert ("Not shifted for ailora on query, value: " in centers.origin) == (multiple == 1)


def test_inits_of_peft_start_from_the_rate_of_plain_lora(tuned: dict[str, Any], suggested: Suggestions) -> None:
    assert _find(_space(tuned, policy=["peft:pissa", "lora"])).centers == [5e-3, 5e-3]
    assert suggested.asked == []


@pytest.mark.parametrize(("rows", "spare"), [(200, 4.0), (MANY_ROWS, 0.0)], ids=["a short run", "no budget"])
def test_what_costs_much_beside_the_budget_is_not_measured(
    tuned: dict[str, Any], suggested: Suggestions, rows: int, spare: float
) -> None:
    suggested["ailora"] = _suggestion(2.0)
    centers = find_rate_centers(_space(tuned), rows_trained=rows, spare_runs=spare)
    assert centers.centers == [5e-3, 5e-3]
    assert (centers.cost_runs, centers.seconds) == (0.0, 0.0)
    assert "would cost" in centers.origin
    assert suggested.asked == []


@pytest.mark.ci
def test_a_search_measures_the_curvature_and_pays_for_it(tuned: dict[str, Any], tmp_path: Path) -> None:
    """Real curvatures of a model, for a run that is long enough."""
    model = tf.BertModel.from_pretrained(tuned["model"])
    for name, parameter in model.named_parameters():
        # The small random attention of the fixture is as curved at each init.
        if name.endswith(("query.weight", "key.weight")):
            parameter.data *= 30
    shutil.copytree(tuned["model"], tmp_path / "sharp")
    model.save_pretrained(tmp_path / "sharp")
    tuned["model"] = str(tmp_path / "sharp")
    tuned["training"] |= {"num_train_epochs": 400, "eval_steps": 0.1}
    tuned["tune"] |= {"roles": [["query", "value"]]}
    storage, design = open_search(load_config(tuned))
    storage.close()
    lora, ailora = design.request.centers
    assert lora == 5e-3
    assert ailora != lora
    assert 5e-4 <= ailora <= 5e-2
    assert design.request.budget_runs == pytest.approx(3 - design.request.suggestion_runs)
    assert 0 < design.request.suggestion_runs <= 0.25
    assert design.request.suggestion_seconds > 0
    rates = [candidate.learning_rate for candidate in design.candidates if candidate.condition.method == "ailora"]
    assert ailora / 10**1.5 <= min(rates) < max(rates) <= ailora * 10**1.5


def test_inits_of_peft_are_space_on_every_set_of_roles(tuned: dict[str, Any]) -> None:
    space = _space(tuned, policy=["peft:pissa", "milora"], roles=[["query", "value"], "all"])
    assert [condition.method for condition in space.conditions] == ["peft:pissa", "milora"] * 2
    of_two, of_all = (config.adapter for config in space.configs.values() if str(config.adapter.method) != "milora")
    assert (of_two.roles, of_two.rank) == (["query", "value"], 4)
    assert of_all.roles is not None
    assert len(of_all.roles) == 6
    trained = [space.trainable[condition] for condition in space.conditions]
    # The rank of all roles is the whole number nearest to the parameters of the first set.
    assert trained[2] == trained[3] == pytest.approx(trained[0], rel=0.5)


@pytest.mark.parametrize(
    ("adapter", "tune", "message"),
    [
        (
            {},
            {"policy": ["peft:orthogonal"]},
            "tune: peft:orthogonal, all linear layers, rank 4: adapter.rank must be even",
        ),
        (
            {"dora": True},
            {"policy": ["peft:mica"]},
            "tune: peft:mica, query and value, rank 4: adapter.dora cannot be combined",
        ),
    ],
)
def test_an_init_that_peft_refuses_is_refused_before_the_search(
    tuned: dict[str, Any], adapter: dict[str, Any], tune: dict[str, Any], message: str
) -> None:
    tuned["adapter"] |= adapter
    with pytest.raises(InputError, match=message):
        _space(tuned, roles=[["query", "value"], "all"], **tune)
