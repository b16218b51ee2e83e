"""Study files, and the grid that they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ailora import InputError
from ailora.recipes.config.yaml_file import format_yaml
from ailora.studies.conditions import Cell, Grid, Group
from ailora.studies.study_config import load_study_config

PAPER = Path(__file__).resolve().parents[2] / "examples" / "paper"


def made(study: dict[str, Any], **changes: Any) -> Grid:
    return Grid(load_study_config(study | changes))


def test_a_cell_is_what_train_would_run(study: dict[str, Any]) -> None:
    grid = made(study)
    cell = Cell(Group("base", "ailora"), 1e-3, 2)
    config = grid.run_config(cell)
    assert config.adapter.policy == "ailora"
    assert config.adapter.rank == 4
    assert (config.training["learning_rate"], config.training["seed"]) == (1e-3, 2)
    assert config.output == str(Path(study["output"]) / "trials" / grid.key_of(cell))


def test_the_key_knows_everything_but_the_folder(study: dict[str, Any]) -> None:
    cell = Cell(Group("base", "lora"), 1e-3, 0)
    key = made(study).key_of(cell)
    assert made(study, output=study["output"] + "-elsewhere").key_of(cell) == key
    other = {**study["base"], "training": {**study["base"]["training"], "num_train_epochs": 3}}
    assert made(study, base=other).key_of(cell) != key
    assert made(study).key_of(Cell(Group("base", "lora"), 1e-3, 1)) != key


def test_another_version_of_a_library_is_another_key(study: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell(Group("base", "lora"), 1e-3, 0)
    key = made(study).key_of(cell)
    monkeypatch.setattr("ailora.studies.conditions.library_versions", lambda: {"peft": "0.0"})
    assert made(study).key_of(cell) != key


def test_cells_survive_json(study: dict[str, Any]) -> None:
    import json

    cell = Cell(Group("t", "lora", (("adapter.rank", "8"),)), 1e-3, 0, 12)
    assert Cell.of(json.loads(json.dumps(cell.described()))) == cell


def test_groups_are_tasks_by_points_by_methods(study: dict[str, Any]) -> None:
    grid = made(study, tasks={"a": {}, "b": {"metric": "f1"}}, grid={"adapter.rank": [2, 4, 8]})
    assert len(grid.groups) == 2 * 3 * 2
    assert {grid.base_of(group).adapter.rank for group in grid.groups} == {2, 4, 8}
    assert {grid.metric_of(group) for group in grid.groups if group.task == "b"} == {"f1"}


def test_full_fine_tuning_knows_no_rank_and_runs_once(study: dict[str, Any]) -> None:
    grid = made(study, methods=["lora", "full"], grid={"adapter.rank": [2, 4]})
    full = [group for group in grid.groups if group.method == "full"]
    assert full == [Group("base", "full")]
    assert grid.baseline_of(full[0]) == Group("base", "lora", (("adapter.rank", "2"),))


def test_a_label_with_overrides_is_a_method(study: dict[str, Any]) -> None:
    methods = ["lora", {"lora+": {"method": "lora", "adapter.learning_rates": {"B": 16.0}}}]
    grid = made(study, methods=methods)
    config = grid.base_of(Group("base", "lora+"))
    assert config.adapter.policy == "lora"
    assert config.adapter.learning_rates == {"B": 16.0}


def test_a_label_may_bring_its_own_learning_rates(study: dict[str, Any]) -> None:
    grid = made(study, methods=["lora", {"full": {"learning_rate": {"values": [1e-5]}}}])
    assert grid.schedule_of(Group("base", "full")).rates.initial == (1e-5,)
    assert len(grid.schedule_of(Group("base", "lora")).rates.initial) == 3


def test_a_label_may_name_a_policy_of_its_own(study: dict[str, Any]) -> None:
    methods = ["lora", {"mine": {"method": "ailora", "adapter.policy": {"query": "minor"}}}]
    assert made(study, methods=methods).base_of(Group("base", "mine")).adapter.policy == {"query": "minor"}


def test_stock_methods_leave_out_what_only_ours_have(study: dict[str, Any]) -> None:
    study["base"]["adapter"]["form"] = "stock"
    grid = made(study, methods=["lora", "peft:olora"])
    assert grid.base_of(Group("base", "lora")).adapter.form == "stock"
    assert grid.base_of(Group("base", "peft:olora")).adapter.policy == "peft:olora"


def test_the_first_method_is_the_baseline_unless_another_is(study: dict[str, Any]) -> None:
    assert made(study).baseline == "lora"
    assert made(study, baseline="ailora").baseline == "ailora"


def test_matched_parameters_scale_the_rank(study: dict[str, Any]) -> None:
    methods = [{"both": {"method": "lora"}}, {"query": {"method": "lora", "adapter.roles": ["query"]}}]
    grid = made(study, methods=methods, match_parameters=True)
    assert grid.base_of(Group("base", "query")).adapter.rank == 8


def test_the_base_may_be_a_file_beside_the_study(study: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(format_yaml(study["base"]))
    (tmp_path / "study.yaml").write_text(format_yaml(study | {"base": "base.yaml"}))
    loaded = load_study_config(tmp_path / "study.yaml", ["base.adapter.rank=2", "seeds=[5]"])
    assert loaded.base["adapter"]["rank"] == 2  # type: ignore[index]
    assert loaded.seeds == [5]


def test_a_scale_replaces_keys(study: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(format_yaml(study | {"scales": {"small": {"seeds": [9], "methods": ["milora"]}}}))
    assert load_study_config(file).seeds == [0, 1, 2]
    small = load_study_config(file, scale="small")
    assert (small.seeds, small.methods) == ([9], ["milora"])
    with pytest.raises(InputError, match=r"study.yaml: unknown scale 'smal' \(did you mean 'small'\?\)"):
        load_study_config(file, scale="smal")


def test_storage_and_name_follow_from_the_output(study: dict[str, Any]) -> None:
    loaded = load_study_config(study)
    assert loaded.storage == f"sqlite:///{study['output']}/study.db"
    assert loaded.name == "study"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": ["lora"]}, r"unknown key 'method' \(did you mean 'methods'\?\)"),
        ({"methods": []}, "configuration key methods is .*expected a list of names"),
        ({"methods": ["lora", "lora"]}, "methods: 'lora' is there twice"),
        ({"methods": ["pisa"]}, r"method 'pisa', task 'base': unknown policy 'pisa' \(did you mean 'pissa'\?\)"),
        ({"methods": ["peft:olra"]}, "method 'peft:olra', task 'base': .*peft:olora"),
        ({"methods": ["nowhere.at_all:f"]}, "method 'nowhere.at_all:f', task 'base': .*nowhere"),
        ({"methods": [{"x": {"method": "lora", "adapter.rnk": 2}}]}, "method 'x'.*unknown key in adapter 'rnk'"),
        ({"methods": [{"x": {"method": 3}}]}, "methods.x.method: expected the name of a policy, got 3"),
        ({"methods": [{"lora": {"learning_rate": {"too": 1}}}]}, "methods.lora.learning_rate: unknown key 'too'"),
        ({"methods": [{"lora": {"learning_rate": 3}}]}, "methods.lora.learning_rate: expected values, or from"),
        ({"tasks": {"t": {"data.labl": "x"}}}, "method 'lora', task 't': unknown key in data 'labl'"),
        ({"tasks": {"t": {"output": "x"}}}, "output cannot be set: it follows from output"),
        ({"grid": {"adapter.rank": []}}, "grid.adapter.rank has no values: the grid has no cells"),
        ({"grid": {"adapter.rank": [0]}}, "adapter.rank 0: configuration key adapter.rank is 0"),
        ({"grid": {"training.seed": [1]}}, "grid.training.seed cannot be set: it follows from seeds"),
        ({"grid": {"training.lerning_rate": [1]}}, "unknown key in training 'lerning_rate'"),
        ({"learning_rate": {"from": 1e-2, "to": 1e-3}}, "learning_rate: from 0.01 is more than to 0.001"),
        ({"learning_rate": {"from": 1e-2}}, "learning_rate needs values, or from and to"),
        ({"learning_rate": {"values": [1e-3], "to": 1.0}}, "learning_rate: give values, or from, to"),
        ({"learning_rate": {"values": [1e-3, 1e-3]}}, "learning_rate.values: the same rate is there twice"),
        ({"learning_rate": {"values": [-1.0]}}, "configuration key learning_rate.values is "),
        ({"learning_rate": {"frm": 1.0}}, r"unknown key in learning_rate 'frm' \(did you mean 'from'\?\)"),
        ({"seeds": []}, "configuration key seeds is "),
        ({"seeds": [0, 1], "extra_seeds": [1]}, "seeds: 1 is there twice"),
        ({"seeds_at": "bst"}, "configuration key seeds_at is 'bst'; expected best or all"),
        ({"baseline": "pissa"}, "unknown baseline 'pissa'; allowed: lora, ailora"),
        ({"metric": "acuracy"}, r"unknown metric of task 'base' 'acuracy' \(did you mean 'accuracy'\?\)"),
        ({"base": "nowhere.yaml"}, "cannot read the configuration nowhere.yaml"),
        ({"base": {}}, "configuration key recipe is missing"),
        ({"worker_timeout": 1}, "configuration key worker_timeout is 1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(
    study: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Grid(load_study_config(study | changes))
    assert not Path(study["output"]).exists()


@pytest.mark.parametrize("file", sorted(PAPER.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_papers_experiments_are_study_files(file: Path) -> None:
    """`match_parameters` looks at the model's configuration, which is on the hub."""
    loaded = load_study_config(file, ["match_parameters=false"])
    grid = Grid(loaded)
    assert grid.wanted({})
    assert Grid(load_study_config(file, ["match_parameters=false"], scale="small")).wanted({})


def test_figure_4_has_nine_pairs_and_each_alone() -> None:
    grid = Grid(load_study_config(PAPER / "figure4.yaml", scale="small"))
    policies = [grid.base_of(group).adapter.policy for group in grid.groups]
    pairs = [policy for policy in policies if isinstance(policy, dict) and len(policy) == 2]
    alone = [policy for policy in policies if isinstance(policy, dict) and len(policy) == 1]
    assert len({tuple(sorted(pair.items())) for pair in pairs}) == 9
    assert len({tuple(one.items()) for one in alone}) == 6
