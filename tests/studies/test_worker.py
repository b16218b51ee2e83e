"""Workers: from the first trial to the last, whatever a run does."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from ailora import InputError
from ailora.cli.study_progress import describe_refusals
from ailora.recipes.config.schema import RunConfig
from ailora.studies.comparison import compare
from ailora.studies.study import (
    create_or_load_study,
    load_study,
    load_study_from_storage,
    trial_frame,
)
from ailora.studies.study_config import load_study_config
from ailora.studies.study_design import StudyDesign
from ailora.studies.study_reader import load_trial_keys
from ailora.studies.trial import Status, TrialResult
from ailora.studies.trial_runner import ShouldContinue, TrialError, TrialPruned
from ailora.studies.trial_storage import TrialStorage
from ailora.studies.worker import work
from ailora.studies.worker_processes import run_workers
from tests.studies.worker_process import outcome_of


class Runs:
    """Executes without training, and remembers what it ran."""

    def __init__(self) -> None:
        self.configs: list[RunConfig] = []

    def __call__(self, config: RunConfig, keep: str, should_continue: ShouldContinue | None) -> TrialResult:
        self.configs.append(config)
        return outcome_of(config)


def opened(study: dict[str, Any], **changes: Any) -> tuple[TrialStorage, StudyDesign]:
    return create_or_load_study(load_study_config(study | changes))


def test_an_output_that_cannot_be_written_is_one_sentence(study: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write \S+/file/study: Not a directory"):
        opened(study, output=str(tmp_path / "file" / "study"))
    storage, design = opened(study)
    logs = Path(study["output"]) / "workers"
    logs.mkdir()
    (logs / "0.log").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"0\.log is a link"):
        run_workers(storage, design.config, 1, lambda: None)
    assert not (tmp_path / "nowhere").exists()
    storage.close()


def test_a_study_runs_to_its_end_and_nothing_twice(study: dict[str, Any]) -> None:
    runs = Runs()
    storage, design = opened(study)
    # Three rates at one seed, then the best and its neighbours at two more, for two methods.
    assert work(storage, design, runs) == 18
    outputs = [config.output for config in runs.configs]
    assert len(set(outputs)) == 18
    assert all(trial.status is Status.COMPLETE for trial in storage.trials())
    assert work(*opened(study), runs) == 0


def test_an_extended_grid_runs_only_the_new_trials(study: dict[str, Any]) -> None:
    work(*opened(study, methods=["lora"], seeds=[0]), Runs())
    runs = Runs()
    assert work(*opened(study, methods=["lora", "ailora"], seeds=[0, 1]), runs) == 3 + 6
    assert {(c.adapter.policy, c.training["seed"]) for c in runs.configs} == {("lora", 1), ("ailora", 0), ("ailora", 1)}


def test_the_looks_of_a_study_that_has_begun_stay(study: dict[str, Any]) -> None:
    """Its seeds, margin, rates and baseline; a list of seeds may become looks."""
    work(*opened(study, methods=["lora"], seeds=[0]), Runs())
    seeds = {"from": 3, "until": "decided", "to": 5}
    assert work(*opened(study, methods=["lora"], seeds=seeds), Runs()) == 6
    for changes in (
        {"seeds": seeds | {"to": 8}},
        {"seeds": seeds | {"to": 4}},
        {"seeds": [0, 1, 2, 3, 4]},
        {"margin": 0.02},
        {"seeds_at": "all"},
        {"learning_rate": {"values": [1e-3, 3e-3]}},
        {"methods": ["lora", "ailora"], "baseline": "ailora"},
        {"methods": ["ailora", "lora"]},
    ):
        changed = "baseline" if "methods" in changes else next(iter(changes))
        with pytest.raises(InputError, match=rf"no longer fits its storage \({changed}"):
            opened(study, **{"methods": ["lora"], "seeds": seeds} | changes)
    opened(study, methods=["lora", "ailora"], seeds=seeds, baseline="lora")[0].close()


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"methods": ["lora", "pissa"]}, "ailora on rank 4"),
        ({"grid": {"adapter.rank": [4]}}, "lora on rank 8"),
        ({"grid": {}}, "lora on rank 8"),
        ({"tasks": {"long": {"training.num_train_epochs": 3}}}, "lora on rank 4"),
    ],
)
def test_a_study_with_looks_loses_no_comparison(study: dict[str, Any], changes: dict[str, Any], missing: str) -> None:
    """Fewer comparisons would weaken the correction for those that look best. They may be added and renamed."""
    study |= {"seeds": {"from": 3, "until": "decided", "to": 5}, "grid": {"adapter.rank": [4, 8]}}
    study |= {"methods": ["lora", "ailora"], "baseline": "lora"}
    opened(study)[0].close()
    with pytest.raises(InputError, match=f"{missing} is no longer among them"):
        opened(study, **changes)
    opened(study, methods=["lora", "pissa", {"ours": {"method": "ailora"}}])[0].close()


@pytest.mark.parametrize(
    "damage", [{"tasks": ["a"]}, {"methods": None}, {"methods": [{}], "seeds": {}}, {"base": {}, "seeds": None}]
)
def test_a_damaged_file_in_the_storage_is_refused(study: dict[str, Any], damage: dict[str, Any]) -> None:
    storage, _ = opened(study, methods=["lora"])
    storage.update_config(storage.config | damage)
    with pytest.raises(InputError, match=r"is damaged|no longer fits"):
        opened(study, methods=["lora"])
    del storage.config["seeds"]
    storage.update_config(storage.config)
    with pytest.raises(InputError, match="is damaged"):
        opened(study, methods=["lora"])


def test_what_a_smaller_grid_leaves_out_is_kept_but_not_shown(study: dict[str, Any]) -> None:
    work(*opened(study), Runs())
    storage, design = opened(study, methods=["lora"])
    assert len(storage.trials()) == 18
    assert set(trial_frame(storage, design)["method"]) == {"lora"}


def test_what_a_removed_seed_leaves_is_kept_but_neither_shown_nor_run(study: dict[str, Any]) -> None:
    study |= {"methods": ["lora"], "seeds_at": "all"}
    work(*opened(study), Runs())
    storage, design = opened(study, seeds=[0, 1])
    assert set(trial_frame(storage, design)["seed"]) == {0, 1}
    (result,) = compare(design.keys.matching_trials(storage.trials()), design).results.values()
    assert (set(result.scores), result.status_counts.total()) == ({0, 1}, 6)
    _, keys = load_trial_keys(design.config)
    assert len(keys.matching_trials(storage.trials())) == 6
    opened(study, seeds=[0, 1, 2, 3])[0].close()
    assert work(*opened(study, seeds=[0, 1]), Runs()) == 0
    assert [trial.status for trial in storage.trials()].count(Status.WAITING) == 3


def test_the_rates_of_one_method_may_change_like_those_of_all(study: dict[str, Any]) -> None:
    def methods(*rates: float) -> dict[str, Any]:
        return {"methods": ["lora", {"full": {"learning_rate": {"values": rates}}}]}

    assert work(*opened(study, seeds=[0], **methods(1e-3)), Runs()) == 3 + 1
    assert work(*opened(study, seeds=[0], **methods(1e-3, 1e-2)), Runs()) == 1
    seeds = {"from": 3, "until": "decided", "to": 5}
    work(*opened(study, seeds=seeds, **methods(1e-3, 1e-2)), Runs())
    with pytest.raises(InputError, match=r"no longer fits its storage \(methods.full.learning_rate.values: "):
        opened(study, seeds=seeds, **methods(1e-3))


def test_a_run_that_fails_is_recorded_and_the_study_goes_on(study: dict[str, Any]) -> None:
    def execute(config: RunConfig, keep: str, should_continue: ShouldContinue | None) -> TrialResult:
        if config.adapter.policy == "lora" and config.training["learning_rate"] == 3e-3:
            raise TrialError("OutOfMemoryError: too large")
        return outcome_of(config)

    storage, design = opened(study)
    work(storage, design, execute)
    failed = [trial for trial in storage.trials() if trial.status is Status.FAIL]
    assert [trial.error for trial in failed] == ["OutOfMemoryError: too large"]
    rows = trial_frame(storage, design)
    assert set(rows["status"]) == {"done", "failed"}
    assert rows.loc[rows["status"] == "failed", "error"].tolist() == ["OutOfMemoryError: too large"]
    # Another rate became lora's best.
    assert best_rates(storage, design)[0] == 1e-3


def best_rates(storage: TrialStorage, design: StudyDesign) -> list[float | None]:
    """Of every condition."""
    trials = design.keys.matching_trials(storage.trials())
    return [design.lr_search(c).plan(scores).best for c, scores in design.scores(trials).items()]


def test_a_score_that_is_no_number_is_a_failure(study: dict[str, Any]) -> None:
    def execute(config: RunConfig, keep: str, should_continue: ShouldContinue | None) -> TrialResult:
        return TrialResult({"validation": {"accuracy": math.nan}}, seconds=0.0)

    storage, design = opened(study, seeds=[0])
    work(storage, design, execute)
    assert {trial.error for trial in storage.trials()} == {"accuracy on the validation split is nan"}


def test_a_failed_loss_is_shown_with_its_own_sign(study: dict[str, Any]) -> None:
    def execute(config: RunConfig, keep: str, should_continue: ShouldContinue | None) -> TrialResult:
        return TrialResult({"validation": {"loss": math.inf}}, seconds=0.0)

    storage, design = opened(study, seeds=[0], metric="loss")
    work(storage, design, execute)
    assert {trial.error for trial in storage.trials()} == {"loss on the validation split is inf"}


def test_an_interrupted_worker_gives_its_trial_back(study: dict[str, Any]) -> None:
    calls: list[int] = []

    def execute(config: RunConfig, keep: str, should_continue: ShouldContinue | None) -> TrialResult:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return outcome_of(config)

    storage, design = opened(study)
    with pytest.raises(KeyboardInterrupt):
        work(storage, design, execute)
    assert sum(trial.status is Status.COMPLETE for trial in storage.trials()) == 3
    assert work(storage, design, execute) == 15


def test_metrics_of_which_less_is_better_choose_the_least(study: dict[str, Any]) -> None:
    storage, design = opened(study, metric="loss")
    work(storage, design, Runs())
    assert best_rates(storage, design) == [3e-3, 3e-3]


def test_a_range_whose_best_is_at_its_edge_grows(study: dict[str, Any]) -> None:
    rates = {"from": 1e-4, "to": 1e-3, "per_decade": 2}
    storage, design = opened(study, learning_rate=rates, methods=["lora"], seeds=[0])
    work(storage, design, Runs())
    tried = sorted(trial.spec.learning_rate for trial in storage.trials())
    assert tried == [1e-4, 3.16228e-4, 1e-3, 3.16228e-3, 1e-2]


def test_pruning_ends_what_is_worse_than_the_median_while_rates_are_sought(study: dict[str, Any]) -> None:
    def execute(config: RunConfig, keep: str, should_continue: ShouldContinue | None) -> TrialResult:
        loss = abs(config.training["learning_rate"] - 3e-3)
        if should_continue is not None and not should_continue(5, loss):
            raise TrialPruned(f"pruned with {loss:.4f}")
        assert should_continue is not None or config.training["seed"] > 0
        return outcome_of(config)

    values = [2e-3, 3e-3, 3.5e-3, 4e-3, 1e-1, 2e-1]
    storage, design = opened(study, methods=["lora"], pruning=True, learning_rate={"values": values}, seeds=[0, 1])
    work(storage, design, execute)
    pruned = {trial.spec.learning_rate for trial in storage.trials() if trial.status is Status.PRUNED}
    assert pruned == {1e-1, 2e-1}
    assert set(trial_frame(storage, design)["status"]) == {"done", "pruned"}


def test_a_file_that_no_longer_fits_says_which_keys_differ(study: dict[str, Any]) -> None:
    storage, _ = opened(study)
    before = storage.config
    base = {**study["base"], "training": {**study["base"]["training"], "num_train_epochs": 7}}
    with pytest.raises(InputError, match=r"longer fits its storage \(base.training.num_train_epochs: 2 there, 7 now"):
        opened(study, base=base)
    with pytest.raises(InputError, match="no longer fits"):
        load_study(load_study_config(study | {"base": base}))
    assert TrialStorage.load(storage.url, storage.name).config == before


def test_a_label_that_means_something_else_does_not_fit(study: dict[str, Any]) -> None:
    opened(study, methods=["lora", {"x": {"method": "lora", "adapter.rank": 2}}])
    with pytest.raises(InputError, match=r"methods.x.adapter.rank: 2 there, 3 now"):
        opened(study, methods=["lora", {"x": {"method": "lora", "adapter.rank": 3}}])


def test_bad_input_leaves_no_storage(study: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="unknown policy"):
        opened(study, methods=["lra"])
    assert not Path(study["output"]).exists()


@pytest.mark.parametrize("key", ["data.train", "model"])
def test_what_cannot_be_read_is_refused_before_a_trial_is_queued(
    study: dict[str, Any], tmp_path: Path, key: str
) -> None:
    tasks = {"good": {}, "bad": {key: str(tmp_path / "absent.tsv")}}
    with pytest.raises(InputError, match=r"^bad: .*absent\.tsv"):
        opened(study, tasks=tasks)
    with pytest.raises(InputError, match="holds no study"):
        load_study(load_study_config(study))
    work(*opened(study, tasks={"good": {}}), Runs())
    storage, _ = opened(study, tasks={"good": {}})
    with pytest.raises(InputError, match=r"^bad: .*absent\.tsv"):
        opened(study, tasks=tasks)
    assert (len(storage.trials()), list(storage.config["tasks"])) == (18, ["good"])


def test_a_finished_study_needs_its_data_no_longer(study: dict[str, Any], tmp_path: Path) -> None:
    data = study["base"]["data"]
    data["train"] = shutil.copy(data["train"], tmp_path)
    work(*opened(study), Runs())
    Path(data["train"]).unlink()
    assert work(*opened(study), Runs()) == 0


def test_a_refused_trial_is_remembered_and_runs_again_when_asked(study: dict[str, Any]) -> None:
    """One that diverged does not; nor does either within a command, whose worker may die meanwhile."""

    def execute(config: RunConfig, keep: str, should_continue: ShouldContinue | None) -> TrialResult:
        rate = config.training["learning_rate"]
        if rate == 1e-3:
            raise TrialError("InputError: train.tsv: no such file")
        if rate == 1e-2:
            raise TrialError("DivergenceError: the loss is not finite")
        return outcome_of(config)

    study |= {"methods": ["lora"], "seeds": [0]}
    storage, design = opened(study)
    assert work(storage, design, execute) == 3
    assert work(storage, design, Runs()) == 0
    assert work(*opened(study), Runs()) == 0
    assert describe_refusals(storage, design.keys)[0] == "1 trial refused: InputError: train.tsv: no such file"
    storage, design = create_or_load_study(load_study_config(study), retry_refused=True)
    died = storage.claim_next(design.keys)
    assert died is not None
    storage._storage.set_trial_state_values(died._id, TrialState.FAIL)
    runs = Runs()
    assert work(storage, design, runs) == 1
    assert [config.training["learning_rate"] for config in runs.configs] == [1e-3]
    assert [trial.status for trial in storage.trials()].count(Status.FAIL) == 1
    assert work(*create_or_load_study(load_study_config(study), retry_refused=True), runs) == 0
    assert describe_refusals(storage, design.keys) == []


def test_looking_makes_nothing(study: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="holds no study 'study'"):
        load_study(load_study_config(study))
    assert not Path(study["output"]).exists()


def test_a_worker_elsewhere_needs_only_the_storage(study: dict[str, Any]) -> None:
    storage, design = opened(study)
    elsewhere = load_study_from_storage(storage.url, storage.name)
    assert work(*elsewhere, Runs()) == 18
    assert trial_frame(*elsewhere).equals(trial_frame(storage, design))


def with_relative_paths(study: dict[str, Any], here: Path, elsewhere: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Make both folders, copy model and data into the first, and name them relative to it."""
    here.mkdir()
    elsewhere.mkdir()
    base = study["base"]
    shutil.copytree(base["model"], here / "model")
    data = {split: Path(shutil.copy(base["data"][split], here)).name for split in ("train", "validation")}
    return study | {"base": base | {"model": "model", "data": base["data"] | data}, "seeds": [0]}, data


def test_a_worker_that_lacks_the_model_refuses_and_readers_do_not(
    study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its folder, `model` would be the name of a model on the hub, and the trials would be others."""
    here = tmp_path / "here"
    study, _ = with_relative_paths(study, here, tmp_path / "elsewhere")
    monkeypatch.chdir(here)
    storage, design = opened(study)
    assert work(storage, design, Runs()) == 6
    (here / "model").rename(here / "gone")
    with pytest.raises(InputError, match=rf"{here / 'model'} is missing here: restore it"):
        load_study_from_storage(storage.url, storage.name)
    assert len(storage.trials()) == 6
    for read in (load_study_from_storage(storage.url, storage.name, to_run=False), load_study(design.config)):
        assert set(trial_frame(*read)["status"]) == {"done"}
        read[0].close()


def test_a_study_is_not_run_from_a_folder_with_other_files(
    study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    study, data = with_relative_paths(study, here, elsewhere)
    for name in data.values():
        shutil.copy(here / name, elsewhere)
    monkeypatch.chdir(here)
    storage, _ = opened(study)
    monkeypatch.chdir(elsewhere)
    with pytest.raises(InputError, match=rf"data.train: .* there, .* now.*call `ailora study run` in {here}, or"):
        opened(study)
    again = TrialStorage.load(storage.url, storage.name)
    assert (len(again.trials()), again.folder) == (6, here)
    again.close()


def test_a_study_has_one_output_folder_which_may_move(study: dict[str, Any], tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    place = {"storage": f"sqlite:///{tmp_path / 'shared.db'}", "name": "shared", "seeds": [0]}
    work(*opened(study, output=str(first), **place), Runs())
    with pytest.raises(InputError, match=rf"output: {second} is not the folder .* set output to {first} to continue"):
        opened(study, output=str(second), **place)
    shutil.rmtree(second)
    first.rename(second)
    assert work(*opened(study, output=str(second), **place), Runs()) == 0
    # A database inside the folder moves with it, or is copied.
    inside = {"name": "inside", "seeds": [0]}
    work(*opened(study, output=str(first), **inside), Runs())
    shutil.copytree(first, tmp_path / "copy")
    assert work(*opened(study, output=str(tmp_path / "copy"), **inside), Runs()) == 0


def test_a_worker_in_another_folder_runs_the_same_trials(
    study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storages of the first versions do not tell the folder of relative paths; it is then that of the worker."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    study, data = with_relative_paths(study, here, elsewhere)
    monkeypatch.chdir(here)
    storage, _ = opened(study)
    monkeypatch.chdir(elsewhere)
    runs = Runs()
    assert work(*load_study_from_storage(storage.url, storage.name), runs) == 6
    assert all(trial.status is Status.COMPLETE for trial in storage.trials())
    assert {(c.data.train, c.model) for c in runs.configs} == {(str(here / data["train"]), str(here / "model"))}
    # Readers in any folder find these trials.
    assert set(trial_frame(*load_study(load_study_config(study)))["status"]) == {"done"}
    storage._study.set_user_attr("folder", None)
    storage._study.set_user_attr("trial_keys", None)
    other, design = load_study_from_storage(storage.url, storage.name)
    assert not design.keys.matching_trials(other.trials())


@pytest.mark.parametrize(
    ("changes", "column", "values"),
    [
        ({"methods": ["lora", {"same": {"method": "lora"}}]}, "method", {"lora", "same"}),
        # A stock method leaves out the form of the adapter.
        ({"methods": ["peft:pissa"], "grid": {"adapter.form": ["anchored", "stock"]}}, "adapter.form", None),
    ],
    ids=["labels", "grid"],
)
def test_conditions_of_equal_configuration_share_their_trials(
    study: dict[str, Any], changes: dict[str, Any], column: str, values: set[str] | None
) -> None:
    runs = Runs()
    storage, design = opened(study, seeds=[0], **changes)
    assert work(storage, design, runs) == 3
    rows = trial_frame(storage, design)
    assert set(rows[column]) == (values or {"anchored", "stock"})
    assert set(rows.groupby(column).size()) == {3}
    assert best_rates(storage, design) == best_rates(storage, design)[:1] * 2


def test_a_renamed_method_keeps_its_trials(study: dict[str, Any]) -> None:
    work(*opened(study, methods=["lora", {"mine": {"method": "ailora"}}], seeds=[0]), Runs())
    storage, design = opened(study, methods=["lora", {"ours": {"method": "ailora"}}], seeds=[0])
    assert work(storage, design, Runs()) == 0
    assert trial_frame(storage, design)["method"].value_counts().to_dict() == {"lora": 3, "ours": 3}
    assert None not in best_rates(storage, design)


def test_a_grid_that_gains_or_reorders_keys_keeps_its_trials(study: dict[str, Any]) -> None:
    work(*opened(study, methods=["lora"], seeds=[0]), Runs())
    # The base has rank 4.
    storage, design = opened(study, methods=["lora"], seeds=[0], grid={"adapter.rank": [4, 8]})
    assert work(storage, design, Runs()) == 3
    assert trial_frame(storage, design)["adapter.rank"].value_counts().to_dict() == {4: 3, 8: 3}
    grid = {"adapter.rank": [4, 8], "adapter.alpha": [4]}
    assert work(*opened(study, methods=["lora"], seeds=[0], grid=grid), Runs()) == 6
    storage, design = opened(study, methods=["lora"], seeds=[0], grid=dict(reversed(grid.items())))
    assert work(storage, design, Runs()) == 0
    assert trial_frame(storage, design)["adapter.rank"].value_counts().to_dict() == {4: 3, 8: 3}


def test_waiting_trials_of_a_removed_method_stay_in_the_queue(study: dict[str, Any]) -> None:
    opened(study, seeds=[0])[0].close()
    storage, design = opened(study, methods=["lora"], seeds=[0])
    assert work(storage, design, Runs()) == 3
    assert [trial.status for trial in storage.trials()].count(Status.WAITING) == 3
    # A study file that has the method again has its trials again.
    assert work(*opened(study, seeds=[0]), Runs()) == 3


def test_a_waiting_trial_of_a_renamed_method_runs_under_the_new_name(study: dict[str, Any]) -> None:
    opened(study, methods=[{"mine": {"method": "ailora"}}], seeds=[0])[0].close()
    storage, design = opened(study, methods=[{"ours": {"method": "ailora"}}], seeds=[0])
    assert work(storage, design, Runs()) == 3
    assert set(trial_frame(storage, design)["method"]) == {"ours"}


def test_a_study_does_not_replace_a_search_of_the_same_name(study: dict[str, Any], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    TrialStorage.create(url, "both", {"kind": "tune", "base": {}, "retries": 20, "worker_timeout": 60}).close()
    with pytest.raises(InputError, match=r"holds a search of `ailora tune` with the name 'both'"):
        opened(study, storage=url, name="both")


@pytest.mark.parametrize("name", ["what?", "50%20", "{a}", "a b#é"])
def test_a_folder_of_any_name_holds_its_own_database(study: dict[str, Any], tmp_path: Path, name: str) -> None:
    storage, _ = opened(study, output=str(tmp_path / name), seeds=[0])
    storage.close()
    assert {file.parent for file in tmp_path.rglob("*.db")} == {tmp_path / name}
    storage, _ = load_study(load_study_config(study | {"output": str(tmp_path / name), "seeds": [0]}))
    assert len(storage.trials()) == 6
    storage.close()
