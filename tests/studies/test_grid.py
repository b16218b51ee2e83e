"""Study files, and the designs that they stand for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from ailora import InputError
from ailora.recipes.config.yaml_file import format_yaml
from ailora.studies.study_config import load_study_config
from ailora.studies.study_design import StudyDesign
from ailora.studies.trial import Condition, TrialSpec
from tests.studies.sample_trials import make_design

PAPER = Path(__file__).resolve().parents[2] / "examples" / "paper"


def made(study: dict[str, Any], **changes: Any) -> StudyDesign:
    return StudyDesign(load_study_config(study | changes))


def test_a_cell_is_what_train_would_run(study: dict[str, Any]) -> None:
    design = made(study)
    spec = TrialSpec(Condition("base", "ailora"), 1e-3, 2)
    config = design.run_config(spec)
    assert config.adapter.policy == "ailora"
    assert config.adapter.rank == 4
    assert (config.training["learning_rate"], config.training["seed"]) == (1e-3, 2)
    assert config.output == str(Path(study["output"]) / "trials" / design.keys.key(spec))


def test_the_key_knows_everything_but_the_folder(study: dict[str, Any]) -> None:
    spec = TrialSpec(Condition("base", "lora"), 1e-3, 0)
    key = made(study).keys.key(spec)
    assert made(study, output=study["output"] + "-elsewhere").keys.key(spec) == key
    other = {**study["base"], "training": {**study["base"]["training"], "num_train_epochs": 3}}
    assert made(study, base=other).keys.key(spec) != key
    assert made(study).keys.key(TrialSpec(Condition("base", "lora"), 1e-3, 1)) != key


def test_another_version_of_a_library_is_another_key(study: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = TrialSpec(Condition("base", "lora"), 1e-3, 0)
    key = made(study).keys.key(spec)
    monkeypatch.setattr("ailora.studies.trial_keys.library_versions", lambda: {"peft": "0.0"})
    assert made(study).keys.key(spec) != key


def test_keys_of_finished_trials_never_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Literal keys of the first databases, whose configurations had fields that were taken out since."""
    monkeypatch.setattr("ailora.studies.trial_keys.library_versions", lambda: {"ailora": "0.1.0", "torch": "2.9.0"})
    data = {"dataset": "verdicts", "train": "train", "validation": "validation", "text": ["sentence"]}
    base = {"recipe": "classification", "model": "builtin:minilm", "adapter": {"rank": 4}, "data": data}
    methods = ["lora", "ailora", "full", "peft:olora"]
    design = make_design(base=base, methods=methods)
    assert design.keys.key(TrialSpec(Condition("base", "ailora"), 1e-3, 1, 12)) == "1613a21d14cdb5667542"
    keys = {method: design.keys.key(TrialSpec(Condition("base", method), 1e-3, 0)) for method in methods}
    assert keys == {
        "lora": "070a91c721eb52ecfb76",
        "ailora": "cd22206082beb6e7e9bd",
        "full": "b78c6d76387c65c18227",
        "peft:olora": "5cf7267276a093ff80ad",
    }


def test_specifications_of_the_first_databases_are_read() -> None:
    group = {"task": "t", "method": "lora", "point": [["adapter.rank", "8"]]}
    data = {"group": group, "learning_rate": 1e-3, "seed": 0, "max_steps": None}
    assert TrialSpec.from_dict(data) == TrialSpec(Condition("t", "lora", (("adapter.rank", "8"),)), 1e-3, 0)


def test_specifications_survive_json(study: dict[str, Any]) -> None:
    import json

    spec = TrialSpec(Condition("t", "lora", (("adapter.rank", "8"),)), 1e-3, 0, 12)
    assert TrialSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_conditions_are_tasks_by_settings_by_methods(study: dict[str, Any]) -> None:
    design = made(study, tasks={"a": {}, "b": {"metric": "f1"}}, grid={"adapter.rank": [2, 4, 8]})
    assert len(design.conditions) == 2 * 3 * 2
    assert {design.base_config(condition).adapter.rank for condition in design.conditions} == {2, 4, 8}
    assert {design.metric(condition) for condition in design.conditions if condition.task == "b"} == {"f1"}


def test_full_fine_tuning_knows_no_rank_and_runs_once(study: dict[str, Any]) -> None:
    design = made(study, methods=["lora", "full"], grid={"adapter.rank": [2, 4]})
    full = [condition for condition in design.conditions if condition.method == "full"]
    assert full == [Condition("base", "full")]
    assert design.baseline_for(full[0]) == Condition("base", "lora", (("adapter.rank", "2"),))


def test_a_label_with_overrides_is_a_method(study: dict[str, Any]) -> None:
    methods = ["lora", {"lora+": {"method": "lora", "adapter.learning_rates": {"B": 16.0}}}]
    design = made(study, methods=methods)
    config = design.base_config(Condition("base", "lora+"))
    assert config.adapter.policy == "lora"
    assert config.adapter.learning_rates == {"B": 16.0}


def test_a_label_may_bring_its_own_learning_rates(study: dict[str, Any]) -> None:
    design = made(study, methods=["lora", {"full": {"learning_rate": {"values": [1e-5]}}}])
    assert design.lr_search(Condition("base", "full")).rates.initial == (1e-5,)
    assert len(design.lr_search(Condition("base", "lora")).rates.initial) == 3


def test_a_label_may_name_a_policy_of_its_own(study: dict[str, Any]) -> None:
    methods = ["lora", {"mine": {"method": "ailora", "adapter.policy": {"query": "minor"}}}]
    assert made(study, methods=methods).base_config(Condition("base", "mine")).adapter.policy == {"query": "minor"}


def test_stock_methods_leave_out_what_only_ours_have(study: dict[str, Any]) -> None:
    study["base"]["adapter"]["form"] = "stock"
    design = made(study, methods=["lora", "peft:olora"])
    assert design.base_config(Condition("base", "lora")).adapter.form == "stock"
    assert design.base_config(Condition("base", "peft:olora")).adapter.policy == "peft:olora"


def test_the_first_method_is_the_baseline_unless_another_is(study: dict[str, Any]) -> None:
    assert made(study).baseline == "lora"
    assert made(study, baseline="ailora").baseline == "ailora"


def test_matched_parameters_scale_the_rank(study: dict[str, Any]) -> None:
    methods = [{"both": {"method": "lora"}}, {"query": {"method": "lora", "adapter.roles": ["query"]}}]
    design = made(study, methods=methods, match_parameters=True)
    assert design.base_config(Condition("base", "query")).adapter.rank == 8


def test_the_base_may_be_a_file_beside_the_study(study: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(format_yaml(study["base"]))
    (tmp_path / "study.yaml").write_text(format_yaml(study | {"base": "base.yaml"}))
    loaded = load_study_config(tmp_path / "study.yaml", ["base.adapter.rank=2", "seeds=[5]"])
    assert loaded.base["adapter"]["rank"] == 2  # type: ignore[index]
    assert loaded.seeds == [5]


def test_an_override_may_name_another_file_for_the_base(study: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(format_yaml(study["base"]))
    (tmp_path / "other.yaml").write_text(format_yaml({**study["base"], "adapter": {"rank": 2}}))
    file = tmp_path / "study.yaml"
    file.write_text(format_yaml(study | {"base": "base.yaml"}))
    config = load_study_config(file, ["base=other.yaml", "base.adapter.alpha=8"])
    assert StudyDesign(config).base_config(Condition("base", "lora")).adapter.rank == 2
    assert StudyDesign(config).base_config(Condition("base", "lora")).adapter.alpha == 8


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
        ({"methods": ["lora", "lora"]}, "methods: duplicate label 'lora'"),
        ({"methods": ["pisa"]}, r"methods.pisa: unknown policy 'pisa' \(did you mean 'pissa'\?\)"),
        ({"methods": ["peft:olra"]}, "methods.peft:olra: .*peft:olora"),
        ({"methods": ["nowhere.at_all:f"]}, "method 'nowhere.at_all:f', task 'base': .*nowhere"),
        ({"methods": [{"x": {"method": "lora", "adapter.rnk": 2}}]}, "method 'x'.*unknown key in adapter 'rnk'"),
        ({"methods": [{"x": {"method": 3}}]}, "methods.x.method: expected the name of a policy, got 3"),
        ({"methods": [{"lora": {"learning_rate": {"too": 1}}}]}, "methods.lora.learning_rate: unknown key 'too'"),
        ({"methods": [{"lora": {"learning_rate": 3}}]}, "methods.lora.learning_rate: expected values, or from"),
        ({"tasks": {"t": {"data.labl": "x"}}}, "method 'lora', task 't': unknown key in data 'labl'"),
        ({"tasks": {"t": {"output": "x"}}}, "output cannot be set: it is set by `output`"),
        ({"grid": {"adapter.rank": []}}, "grid.adapter.rank has no values: the grid has no cells"),
        ({"grid": {"adapter.rank": [0]}}, "adapter.rank 0: configuration key adapter.rank is 0"),
        ({"grid": {"adapter.policy": ["lora"]}}, "grid.adapter.policy cannot be set: it is set by `methods`"),
        ({"tasks": {"t": {"adapter.policy": "lora"}}}, "adapter.policy cannot be set: it is set by `methods`"),
        (
            {"methods": [{"x": {"method": "lora", "training.learning_rate": 0.1}}]},
            "method 'x', task 'base': training.learning_rate cannot be set: it is set by `learning_rate`",
        ),
        ({"grid": {"training.seed": [1]}}, "grid.training.seed cannot be set: it is set by `seeds`"),
        ({"grid": {"training.lerning_rate": [1]}}, "unknown key in training 'lerning_rate'"),
        ({"learning_rate": {"from": 1e-2, "to": 1e-3}}, "learning_rate: from 0.01 is more than to 0.001"),
        ({"learning_rate": {"from": 1e-2}}, "learning_rate needs values, or from and to"),
        ({"learning_rate": {"values": [1e-3], "to": 1.0}}, "learning_rate: give values, or from, to"),
        ({"learning_rate": {"values": [1e-3, 1e-3]}}, "learning_rate.values: duplicate rate"),
        ({"learning_rate": {"values": [-1.0]}}, "configuration key learning_rate.values is "),
        ({"learning_rate": {"frm": 1.0}}, r"unknown key in learning_rate 'frm' \(did you mean 'from'\?\)"),
        ({"seeds": []}, "configuration key seeds is "),
        ({"seeds": [0, 1], "extra_seeds": [1]}, "seeds: duplicate seed 1"),
        ({"seeds_at": "bst"}, "configuration key seeds_at is 'bst'; expected 'best' or 'all'"),
        ({"baseline": "pissa"}, "unknown baseline 'pissa'; allowed: lora, ailora"),
        ({"metric": "acuracy"}, r"unknown metric of task 'base' 'acuracy' \(did you mean 'accuracy'\?\)"),
        ({"base": "nowhere.yaml"}, "cannot read the configuration nowhere.yaml"),
        ({"base": {}}, "configuration key recipe is missing"),
        ({"output": "a\0b"}, "expected a path to write to"),
        ({"output": "x" * 5000}, "expected a path to write to.*File name too long"),
        ({"worker_timeout": 1}, "configuration key worker_timeout is 1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(
    study: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        StudyDesign(load_study_config(study | changes))
    assert not Path(study["output"]).exists()


@pytest.mark.parametrize("file", sorted(PAPER.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_papers_experiments_are_study_files(file: Path) -> None:
    """`match_parameters` looks at the model's configuration, which is on the hub."""
    loaded = load_study_config(file, ["match_parameters=false"])
    design = StudyDesign(loaded)
    assert design.required_trials([])
    assert StudyDesign(load_study_config(file, ["match_parameters=false"], scale="small")).required_trials([])


def test_figure_4_has_nine_pairs_and_each_alone() -> None:
    design = StudyDesign(load_study_config(PAPER / "figure4.yaml", scale="small"))
    policies = [design.base_config(condition).adapter.policy for condition in design.conditions]
    pairs = [policy for policy in policies if isinstance(policy, dict) and len(policy) == 2]
    alone = [policy for policy in policies if isinstance(policy, dict) and len(policy) == 1]
    assert len({tuple(sorted(pair.items())) for pair in pairs}) == 9
    assert len({tuple(one.items()) for one in alone}) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"learning_rate": {"from": 1e-5, "to": 1e-1, "per_decade": 10**9}},
            "1000 rates of a method, got 4,000,000,000",
        ),
        ({"learning_rate": {"from": 1e-5, "to": 1e-5, "per_decade": 10**9}}, "at most 1000 rates of a method"),
        ({"learning_rate": {"from": 1e-300, "to": 1e300}}, "are more than 100 decades"),
        ({"learning_rate": {"values": [1e-6 * (i + 1) for i in range(1001)]}}, "1000 rates of a method, got 1,001"),
        ({"grid": {"adapter.alpha": list(range(1, 100_001))}}, r"about 1,\d00,000 trials: 1 tasks x 100,000 settings"),
        ({"grid": {f"training.{key}": list(range(100)) for key in ("a", "b", "c", "d")}}, "settings of the grid"),
        ({"seeds": list(range(100_000))}, r"about 600,000 trials"),
        ({"tasks": {str(i): {} for i in range(100_000)}}, r"100,000 tasks x 1 settings"),
        ({"methods": ["lora", *({str(i): {"method": "lora"}} for i in range(20_000))]}, "20,001 methods"),
    ],
)
def test_what_is_too_large_is_refused_by_count(study: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    began = time.process_time()
    with pytest.raises(InputError, match=message):
        made(study, **changes)
    assert time.process_time() - began < 5


def test_a_grid_of_thousands_is_a_study(study: dict[str, Any]) -> None:
    assert len(made(study, grid={"adapter.alpha": list(range(1, 101))}).conditions) == 200
