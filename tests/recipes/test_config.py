"""Configurations: what is completed, and what is refused by name."""

from __future__ import annotations

import inspect
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from transformers import SchedulerType

import ailora
from ailora.recipes.config.classification_config import ClassificationConfig, DataConfig
from ailora.recipes.config.language_config import EvaluationConfig, Seq2SeqData
from ailora.recipes.config.loader import load_config, task_names, to_yaml
from ailora.recipes.config.sections import AdapterConfig, RunConfig
from ailora.recipes.config.validation import Section
from ailora.recipes.config.yaml_file import format_yaml, parse_yaml
from ailora.recipes.dry_run import dry_run
from ailora.recipes.training.arguments import TRAINING_DEFAULTS
from ailora.studies.study_config import RateConfig, SequentialSeeds

#: A default in a docstring, at the end of a sentence.
_DEFAULT = re.compile(r"; default: `?([\w.{}]+?)`?\.(?: |$)")


def minimal() -> dict[str, Any]:
    return {
        "recipe": "classification",
        "model": "builtin:minilm",
        "data": {"train": "train.tsv", "validation": ["a.tsv", "b.tsv"], "text": ["sentence"]},
        "output": "out/x",
    }


def attribute_docs(section: type[Section]) -> dict[str, str]:
    """The text on each key in the docstring, in one line."""
    _, attributes = inspect.getdoc(section).split("Attributes:\n")  # type: ignore[union-attr]
    entries = re.split(r"^    (?=\w)", attributes, flags=re.MULTILINE)[1:]
    return {names: " ".join(text.split()) for names, text in (entry.split(": ", 1) for entry in entries)}


DOCUMENTED = (AdapterConfig, ClassificationConfig, DataConfig, EvaluationConfig, RateConfig, RunConfig, Seq2SeqData)


@pytest.mark.parametrize("section", [*DOCUMENTED, SequentialSeeds], ids=lambda section: section.__name__)
def test_documented_defaults_are_those_of_the_keys(section: type[Section]) -> None:
    defaults = {key: match[1] for key, text in attribute_docs(section).items() if (match := _DEFAULT.search(text))}
    assert defaults
    assert defaults == {key: str(section.model_fields[key].default) for key in defaults}


def test_documented_training_defaults_are_all_there_are() -> None:
    text = attribute_docs(RunConfig)["training"]
    assert dict(re.findall(r"`(\w+): ([\w.]+)`", text)) == {key: str(value) for key, value in TRAINING_DEFAULTS.items()}


def test_a_resolved_config_runs_again_as_it_is() -> None:
    config = load_config(minimal())
    again = load_config(parse_yaml(to_yaml(config)))
    assert again == config
    assert Path(config.output).is_absolute()
    assert all(Path(path).is_absolute() for path in config.data.validation)


def test_saving_follows_evaluating() -> None:
    def strategies(*overrides: str) -> dict[str, Any]:
        training = load_config(minimal(), overrides).training
        return {key: training.get(key) for key in ("eval_strategy", "eval_steps", "save_strategy", "save_steps")}

    assert list(strategies().values()) == ["steps", 0.1, "steps", 0.1]
    assert list(strategies("training.eval_strategy=epoch").values()) == ["epoch", None, "epoch", None]
    assert list(strategies("training.eval_steps=7").values()) == ["steps", 7, "steps", 7]


def test_overrides_are_yaml_values_under_dotted_keys(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(format_yaml(minimal()))
    overrides = ["adapter.policy=lora", "adapter.rank={query: 2, value: 4}", "training.learning_rate=1e-3"]
    config = load_config(file, [*overrides, "data.max_train_samples=500", "training.seed=1"])
    assert config.adapter.policy == "lora"
    assert config.adapter.rank == {"query": 2, "value": 4}
    assert config.training["learning_rate"] == 1e-3
    assert (config.data.max_train_samples, config.training["seed"]) == (500, 1)


def test_an_override_changes_one_of_two_sections_that_share_an_alias(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    rates = "adapter:\n  learning_rates: {query: &rates {A: 1.0, B: 2.0}, value: *rates}\n"
    file.write_text(format_yaml(minimal()) + rates)
    config = load_config(file, ["adapter.learning_rates.query.A=3.0"])
    assert config.adapter.learning_rates == {"query": {"A": 3.0, "B": 2.0}, "value": {"A": 1.0, "B": 2.0}}


def test_templates_beside_a_data_set_become_absolute_and_its_name_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run resumes and predicts from any working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    (tmp_path / "chat.html").write_text("{{ messages }}")
    data = {"train": "train", "validation": "test", "messages": "m", "chat_template": "chat.html"}
    raw = {"recipe": "causal_lm", "model": "m", "output": "o"}
    local = load_config({**raw, "data": {**data, "dataset": "rows"}}).data
    assert (local.dataset, local.train) == ("rows", "train")
    assert local.model_dump()["chat_template"] == str(tmp_path / "chat.html")
    assert load_config({**raw, "data": {**data, "dataset": "owner/rows"}}).data.dataset == "owner/rows"


@pytest.mark.parametrize("task", task_names())
def test_tasks_fill_in_data_and_metric(task: str) -> None:
    config = load_config({"recipe": "classification", "task": task, "model": "m", "output": "o"})
    assert config.data.dataset == "nyu-mll/glue"
    assert config.data.subset == task
    assert config.regression == (task == "stsb")


def test_what_is_given_wins_over_the_task() -> None:
    raw = {"recipe": "classification", "task": "cola", "model": "m", "output": "o", "metric": "accuracy"}
    config = load_config({**raw, "data": {"max_train_samples": 5}})
    assert (config.metric, config.data.max_train_samples, config.data.text) == ("accuracy", 5, ["sentence"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle=x", "unknown key 'modle' .did you mean 'model'"),
        ("adapter.rnak=4", "unknown key in adapter 'rnak' .did you mean 'rank'"),
        ("data.lable=x", "unknown key in data 'lable' .did you mean 'label'"),
        ("training.learning_rat=1", "unknown key in training 'learning_rat' .did you mean 'learning_rate'"),
        ("training.output_dir=x", "training.output_dir cannot be set: it is set by `output`"),
        ("training.learning_rate=fast", "training.learning_rate: .*, got 'fast'"),
        ("training.num_train_epochs=[1]", "training.num_train_epochs: .*, got"),
        ("metric=accurracy", "unknown metric 'accurracy' .did you mean 'accuracy'"),
        ("metric=[accuracy, pearson]", "cannot be mixed"),
        ("adapter.policy=ailroa", "unknown policy 'ailroa' .did you mean 'ailora'.*; allowed: .*full"),
        ("adapter.policy={query: smallest}", "unknown init 'smallest'"),
        ("adapter.roles=[querry]", "unknown role 'querry'"),
        ("adapter.role_names={wq: querry}", "unknown role 'querry'"),
        ("adapter.form=anchor", "unknown form 'anchor' .did you mean 'anchored'"),
        ("adapter.rank=many", "configuration key adapter.rank"),
        ("data.text=[]", "configuration key data.text"),
        ("data.text=[a, b, c]", "configuration key data.text"),
        ("data.max_train_samples=0", "data.max_train_samples is 0; expected a whole number of at least 1$"),
        ("recipe=clasification", "unknown recipe 'clasification'"),
        ("task=colla", "unknown task 'colla' .did you mean 'cola'"),
        ("model.x=1", "'model' is not a section"),
        ("adapter.rank", "not of the form dotted.key=value"),
        ("data.text=[a", "not a YAML value"),
        ("data={text: [a], text: [b]}", "not a YAML value: line 1: found duplicate key"),
        ("model=!!binary aGk=", "a value of the type bytes"),
        ("1=x", "unknown key '1'"),
        ("output=", "configuration key output is missing; expected a folder"),
        ("output=''", "configuration key output is ''; expected a folder"),
        ("model=5", "configuration key model is 5; expected a hub id, a folder, or .builtin:minilm.$"),
        (
            "data=[]",
            r"configuration key data is \[\]; expected a section with the keys train, .*max_length$",
        ),
        (
            "adapter=lora",
            "configuration key adapter is 'lora'; expected a section with the keys policy, .*learning_rates$",
        ),
        (
            "training={gradient_checkpointing: true, activation_checkpointing: false}",
            "training.gradient_checkpointing is the former name of training.activation_checkpointing: give only",
        ),
        ("training=[]", r"configuration key training is \[\]; expected fields of the recipe's training arguments$"),
        ("metric=7", "configuration key metric is 7; expected a metric name or a list of metric names$"),
        (
            "adapter.policy=[a]",
            "adapter.policy is .*; expected a preset's name, .full., .peft:NAME., .package.module:func",
        ),
        (
            "adapter.rank=true",
            "adapter.rank is True; expected a whole number of at least 1, or a mapping from role or regular expr",
        ),
        (
            "adapter.rank={query: true}",
            "adapter.rank is .*True.*; expected a whole number of at least 1, or a mapping from role",
        ),
        ("adapter.rank='8'", "adapter.rank is '8'; expected a whole number"),
        ("adapter.rank=0", "adapter.rank is 0; expected a whole number of at least 1"),
        ("adapter.alpha=yes", "adapter.alpha is .yes.; expected a number above 0, or a mapping from role"),
        ("adapter.alpha=-1", "adapter.alpha is -1; expected a number above 0"),
        ("adapter.alpha=1.0e+300", r"between 0\.000488 and 524032 in adapter.alpha, got 1e\+300 .*float16"),
        ("adapter.alpha={query: 8, value: 1.0e-30}", "alpha must be a number between .* in adapter.alpha, got 1e-30"),
        ("adapter={policy: lora, rank: 4, rslora: true, alpha: 200000}", r"scaling alpha / sqrt\(rank\), .* rank 4"),
        ("adapter.dropout=1", "adapter.dropout is 1; expected a number of at least 0 and below 1$"),
        ("adapter.rslora='no'", "adapter.rslora is 'no'; expected true or false$"),
        ("adapter.dora='no'", "adapter.dora is 'no'; expected true or false$"),
        ("adapter={policy: full, rank: 8, dora: true}", "full .*; remove adapter.dora, adapter.rank"),
        ("data.subset=cola", "data.subset 'cola' requires data.dataset, which is missing"),
        ("data={dataset: d, subset: '', train: t, validation: v, text: [a]}", "data.subset is ''; expected the name"),
        (
            "data={dataset: d, columns: [a], train: t, validation: v, text: [a]}",
            "data.columns .* not to data.dataset",
        ),
        (
            "data={dataset: d, train: [a, b], validation: v, text: [a]}",
            r"data\.train must be the name of one split of data\.dataset, .* got \['a', 'b'\]$",
        ),
        ("data.text=[a, a]", "data.text names 'a' twice"),
        ("data.columns=[a, label, a]", "data.columns names 'a' twice"),
        ("data.text=[prediction]", "data.text: 'prediction' is reserved for the columns of predictions"),
        ("data.text=[a, row]", "data.text: 'row' is reserved for the columns of predictions"),
        ("data.text=[label]", "data.label 'label' is also in data.text"),
    ],
)
def test_what_is_wrong_is_named(override: str, message: str) -> None:
    with pytest.raises(ailora.InputError, match=message):
        load_config(minimal(), [override])


def test_label_smoothing_of_a_regression_is_refused() -> None:
    message = "training.label_smoothing_factor applies to classes, not to the numbers of a regression"
    overrides = ["metric=pearson", "training.label_smoothing_factor=0.1"]
    with pytest.raises(ailora.InputError, match=message):
        load_config(minimal(), overrides)
    # A finished run, whose training ignored the key, stays readable.
    assert load_config(minimal(), overrides, to_run=False).training["label_smoothing_factor"] == 0.1


def test_missing_keys_and_files_are_named(tmp_path: Path) -> None:
    raw = minimal()
    del raw["model"]
    with pytest.raises(ailora.InputError, match="configuration key model is missing; expected a hub id"):
        load_config(raw)
    with pytest.raises(ailora.InputError, match=r"cannot read the configuration .*nowhere"):
        load_config(tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ailora.InputError, match=r"bad\.yaml is not YAML"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(ailora.InputError, match="expected keys such as recipe"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "empty.yaml").touch()
    with pytest.raises(ailora.InputError, match=r"empty\.yaml: .*; got nothing"):
        load_config(tmp_path / "empty.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rate=-1", "at least 0, got -1"),
        ("learning_rate=true", "a number, got True"),
        ("learning_rate=.nan", "a finite number"),
        ("weight_decay=-0.1", "at least 0, got -0.1"),
        ("max_steps=0", "at least 1, or -1 to use num_train_epochs, got 0"),
        ("max_steps=-2", "at least 1, or -1 to use num_train_epochs, got -2"),
        ("num_train_epochs=0", "more than 0, or max_steps to be set, got 0"),
        ("num_train_epochs=-1", "more than 0"),
        ("per_device_train_batch_size=0", "at least 1, got 0"),
        ("per_device_eval_batch_size=0", "at least 1, got 0"),
        ("gradient_accumulation_steps=0", "at least 1, got 0"),
        ("seed=-1", "a whole number from 0 to 4294967295, got -1"),
        ("data_seed=4294967296", "a whole number from 0 to"),
        ("label_smoothing_factor=1", "at least 0 and below 1, got 1"),
        ("label_smoothing_factor=-0.1", "at least 0 and below 1"),
        ("eval_steps=0", "a whole number of at least 1 .steps., or a fraction between 0 and 1 .*, got 0"),
        ("eval_steps=-5", "a whole number of at least 1 .steps."),
        ("save_steps=2.5", "a whole number of at least 1 .*, got 2.5"),
        ("logging_steps=0", "a whole number of at least 1 .steps."),
        ("neftune_noise_alpha=-1", "at least 0, got -1"),
        ("dataloader_num_workers=1000000", "from 0 to 256 processes, got 1000000"),
        ("dataloader_prefetch_factor=0", "at least 1, got 0"),
        ("torch_empty_cache_steps=0", "at least 1, got 0"),
    ],
)
def test_training_values_out_of_range_are_named(override: str, message: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(ailora.InputError, match=rf"training\.{key}: expected {message}"):
        load_config(minimal(), [f"training.{override}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval_steps=null", "training.eval_steps: .*number, got None"),
        ("optim=adamw_troch", "unknown training.optim 'adamw_troch' .did you mean 'adamw_torch'.*; allowed: "),
        ("lr_scheduler_type=foo", "unknown training.lr_scheduler_type 'foo'; allowed: linear, cosine"),
        ("eval_strategy=never", "unknown training.eval_strategy 'never'; allowed: no, steps, epoch$"),
        ("eval_strategy=5", "training.eval_strategy: expected a string, got 5$"),
        ("bf16=maybe", "training.bf16: expected true or false, got 'maybe'$"),
        ("learning_rate=fast", "training.learning_rate: expected a number, got 'fast'$"),
        ("tf32=[1]", r"training.tf32: expected true or false or null, got \[1\]$"),
        ("parallelism_config=1", "training.parallelism_config: expected null, got 1$"),
        ("lr_scheduler_kwargs=3", "training.lr_scheduler_kwargs: expected a mapping or a string or null, got 3$"),
        ("metric_for_best_model=foo", "unknown training.metric_for_best_model 'foo'; allowed: accuracy, loss$"),
        ("metric_for_best_model=eval_f1", "allowed: accuracy, loss$"),
        ("label_names=[y]", "training.label_names cannot be set: the metrics of the recipe determine it"),
        ("prediction_loss_only=true", "training.prediction_loss_only cannot be set"),
        ("resume_from_checkpoint=x", "training.resume_from_checkpoint cannot be set"),
        ("save_strategy=best", "training.save_strategy: expected 'no', 'steps' or 'epoch', got 'best'"),
        ("report_to=foo", "training.report_to: foo is not supported, .*wandb.*; 'none' and 'all' are also allowed$"),
        ("report_to=[comet_ml]", "training.report_to: 'comet_ml' needs a package that is not installed"),
    ],
)
def test_training_words_that_cannot_be_used_are_named(override: str, message: str) -> None:
    with pytest.raises(ailora.InputError, match=message):
        load_config(minimal(), [f"training.{override}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("save_only_model=true", "save_only_model cannot be true: .* resumed run .* optimizer"),
        ("ignore_data_skip=true", "ignore_data_skip cannot be true: .* first rows"),
        ("auto_find_batch_size=true", "auto_find_batch_size cannot be true: .* start over"),
        ("enable_jit_checkpoint=true", "enable_jit_checkpoint cannot be true: .* count as finished"),
        ("logging_nan_inf_filter=true", "logging_nan_inf_filter cannot be true"),
        ("dataloader_persistent_workers=true", "dataloader_persistent_workers cannot be true"),
        ("dataloader_drop_last=true", "dataloader_drop_last cannot be true: evaluations"),
    ],
)
def test_options_that_break_a_promise_are_refused_before_a_run_and_read_after_it(override: str, message: str) -> None:
    with pytest.raises(ailora.InputError, match=rf"training\.{message}"):
        load_config(minimal(), [f"training.{override}"])
    load_config(minimal(), [f"training.{override}"], to_run=False)
    load_config(minimal(), [f"training.{override.replace('true', 'false')}"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["deepspeed=/etc/passwd"], "deepspeed: expected a mapping or the path of a JSON file: .*not JSON"),
        (["deepspeed=nowhere.json"], "deepspeed: expected .*nowhere.json"),
        (["fsdp_config=nowhere.json"], "fsdp_config: expected .*nowhere.json"),
        (["accelerator_config={split: true}"], "accelerator_config: .*split"),
        (["lr_scheduler_kwargs={a: 1}"], "lr_scheduler_type linear with lr_scheduler_kwargs .*'a'"),
        (["lr_scheduler_type=cosine", "lr_scheduler_kwargs={num_cycles: x}"], "lr_scheduler_type cosine with"),
        (["lr_scheduler_type=warmup_stable_decay"], "lr_scheduler_type warmup_stable_decay: "),
        (["optim=galore_adamw"], "optim galore_adamw: "),
        (["dataloader_prefetch_factor=2"], "dataloader_.*prefetch"),
        (["dataloader_num_workers=1", "dataloader_multiprocessing_context=thread"], "dataloader_.*thread"),
    ],
)
def test_what_training_could_not_use_is_refused_before_it(overrides: list[str], message: str) -> None:
    with pytest.raises(ailora.InputError, match=message):
        load_config(minimal(), [f"training.{override}" for override in overrides])


@pytest.mark.parametrize("key", ["deepspeed", "fsdp_config", "accelerator_config"])
def test_json_files_of_training_become_absolute_as_those_of_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """transformers opens them while training, in whatever folder a worker or a resumed run then is."""
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    for path in (folder, elsewhere):
        path.mkdir()
    (folder / "settings.json").write_text("{}")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(elsewhere)
    # The package deepspeed need not be installed.
    to_run = key != "deepspeed"

    def load(name: str, **options: Any) -> Any:
        return load_config(minimal(), [f"training.{key}={name}"], to_run=to_run, **options).training[key]

    assert load("settings.json", folder=folder) == load("~/settings.json") == str(folder / "settings.json")
    assert load("'{}'") in ({}, "{}")
    monkeypatch.chdir(folder)
    assert load("settings.json") == str(folder / "settings.json")


@pytest.mark.skipif(find_spec("liger_kernel") is not None, reason="it is installed")
def test_packages_that_are_not_installed_are_named() -> None:
    with pytest.raises(ailora.InputError, match=r"training\.use_liger_kernel needs the package liger_kernel"):
        load_config(minimal(), ["training.use_liger_kernel=true"])


@pytest.mark.parametrize("schedule", [kind.value for kind in SchedulerType])
def test_schedules_with_what_they_need_are_taken(schedule: str) -> None:
    kwargs = {"warmup_stable_decay": "{num_decay_steps: 10}", "cosine_with_min_lr": "{min_lr: 0.00001}"}
    kwargs |= {"cosine_warmup_with_min_lr": "{min_lr: 0.00001}"}
    overrides = [f"training.lr_scheduler_type={schedule}"]
    load_config(minimal(), [*overrides, f"training.lr_scheduler_kwargs={kwargs.get(schedule, 'null')}"])


def test_training_values_at_their_limits_are_taken() -> None:
    given = {
        "learning_rate": 0,
        "max_steps": 1,
        "num_train_epochs": 0,
        "label_smoothing_factor": 0.0,
        "eval_steps": 0.5,
        "save_steps": 3.0,
        "metric_for_best_model": "eval_loss",
        "report_to": ["none"],
        "save_strategy": "no",
        "save_total_limit": None,
    }
    training = load_config({**minimal(), "training": given}).training
    assert (training["eval_steps"], training["save_steps"], training["save_strategy"]) == (0.5, 3, "no")


def test_sections_with_nothing_in_them_mean_the_defaults() -> None:
    empty = {"adapter": None, "training": None, "metric": None, "task": None}
    assert load_config({**minimal(), **empty}) == load_config(minimal())
    assert load_config({**minimal(), **empty}, ["training.seed=3"]).training["seed"] == 3


def test_files_in_the_place_of_a_tasks_data_set_leave_its_subset(tmp_path: Path) -> None:
    raw = {"recipe": "classification", "task": "cola", "model": "m", "output": "o"}
    data = {"dataset": None, "train": str(tmp_path / "a.tsv"), "validation": str(tmp_path / "b.tsv")}
    assert load_config({**raw, "data": data}).data.subset is None


def test_full_fine_tuning_is_written_without_the_keys_of_adapters() -> None:
    config = load_config(minimal(), ["adapter={policy: full}"])
    assert parse_yaml(to_yaml(config))["adapter"] == {"policy": "full"}
    assert load_config(parse_yaml(to_yaml(config))) == config


def test_keys_that_are_there_twice_are_named_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("recipe: classification\nadapter:\n  rank: 4\n  policy: lora\n  rank: 8\n")
    with pytest.raises(ailora.InputError, match=r"c\.yaml is not YAML: line 5: found duplicate key \"rank\""):
        load_config(file)
    # A key beside a merged one is no repetition.
    shared = format_yaml(minimal()) + "adapter: &a {rank: 4}\ntraining: {seed: 1}\n"
    file.write_text(shared.replace("adapter: &a {rank: 4}", "adapter: {<<: {rank: 4, form: stock}, rank: 2}"))
    adapter = load_config(file).adapter
    assert (adapter.rank, adapter.form) == (2, "stock")


def test_what_is_wrong_in_a_file_is_said_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(format_yaml({**minimal(), "modle": "x"}))
    with pytest.raises(ailora.InputError, match=r"^\S+c\.yaml: unknown key 'modle'"):
        load_config(file)
    with pytest.raises(ailora.InputError, match=r"^\S+c\.yaml with overrides: unknown key in adapter 'rnak'"):
        load_config(file, ["adapter.rnak=4"])


def test_what_transformers_refuses_is_refused_before_anything_is_loaded() -> None:
    overrides = ["training.load_best_model_at_end=true", "training.save_strategy=epoch", "model=no/such-model"]
    state = dict(PartialState._shared_state)
    with pytest.raises(ailora.InputError, match="training: --load_best_model_at_end requires"):
        load_config(minimal(), overrides)
    assert PartialState._shared_state == state, "a device or a process group was set up"
    # A configuration that is only looked at may have been trained by another version of transformers.
    assert load_config(minimal(), overrides, to_run=False).training["load_best_model_at_end"] is True


@pytest.mark.parametrize("name", ["x" * 5000, "x/" * 3000 + "x", "~nobody-of-that-name/x", "a\0b"])
@pytest.mark.parametrize("key", ["model", "data.train"])
def test_names_that_no_file_can_have_name_none(config: dict[str, Any], key: str, name: str) -> None:
    section, _, leaf = key.rpartition(".")
    (config[section] if section else config)[leaf] = f"{name}.csv" if section else f"/{name}"
    with pytest.raises(ailora.InputError, match="no such file" if section else r"is not a folder|got '/a") as error:
        dry_run(load_config(config))
    assert len(str(error.value)) < 1000


def test_overrides_that_cannot_be_kept_are_named_and_shortened() -> None:
    with pytest.raises(ailora.InputError, match=r"its key: .*half a character"):
        load_config({}, ["mod\udcffel=x"])
    with pytest.raises(ailora.InputError, match="not a YAML value") as error:
        load_config({}, ["training.max_steps=" + "9" * 5000])
    assert len(str(error.value)) < 1000
