"""Runs: what they write, how they repeat, how they survive being killed."""

from __future__ import annotations

import copy
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf
from peft import PeftModelForSequenceClassification
from safetensors.torch import load_file

import ailora
from ailora.plan import find_metadata
from ailora.recipes import registry
from ailora.recipes.classification import ClassificationRecipe
from ailora.recipes.config.loader import load_config
from ailora.recipes.config.yaml_file import format_yaml, parse_yaml
from ailora.recipes.data.classification_rows import Examples
from ailora.recipes.data.labels import Labels
from ailora.recipes.evaluation.predictions import Predictions
from ailora.recipes.registry import load_run
from ailora.recipes.task_models import load_classifier, load_tokenizer
from tests.recipes.conftest import SIZES
from tests.recipes.run_kills import run_process
from tests.tiers import in_tiers

TIMES = ("init_seconds", "train_seconds", "peak_memory_bytes", "config")


def run(config: dict[str, Any], *overrides: str) -> dict[str, Any]:
    return registry.run(load_config(config, overrides))


def adapter(policy: str) -> str:
    """The override that chooses a policy; full fine-tuning has no rank."""
    return "adapter={policy: full}" if policy == "full" else f"adapter={{policy: {policy}, rank: 4}}"


def outcome(folder: Path) -> dict[str, Any]:
    """What two runs of the same configuration have in common: all but times, memory and the folder's name."""
    result = json.loads((folder / "result.json").read_text())
    predictions = pd.read_parquet(folder / "predictions.parquet")
    weights = load_file(next(folder.glob("*/*model.safetensors")))
    return {
        "result": {key: value for key, value in result.items() if key not in TIMES},
        "log": (folder / "log.jsonl").read_text(),
        "predictions": {name: [np.asarray(v).tolist() for v in predictions[name]] for name in predictions},
        "weights": {name: tensor.numpy().tobytes() for name, tensor in weights.items()},
    }


def test_a_run_writes_all_that_it_promises(config: dict[str, Any], tmp_path: Path) -> None:
    result = run(config)
    folder = tmp_path / "run"
    assert json.loads((folder / "result.json").read_text()) == result
    assert set(result["metrics"]) == {"validation", "test"}
    assert set(result["metrics"]["test"]) == {"loss", "accuracy", "f1"}
    assert result["steps"] == 24
    assert [record["step"] for record in result["history"]] == [5, 10, 15, 20, 24]
    assert result["history"][-1]["accuracy"] == result["metrics"]["validation"]["accuracy"]
    assert result["best"]["accuracy"]["accuracy"] == max(record["accuracy"] for record in result["history"])
    assert result["labels"] == ["blame", "praise"]
    # Two projections in two layers, r (in + out) each, and the head.
    assert result["trainable_parameters"] == 4 * 4 * (32 + 32) + 2 * 32 + 2

    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert {record["step"] for record in log} == {3, 5, 6, 9, 10, 12, 15, 18, 20, 21, 24}
    assert all({"loss", "learning_rate", "grad_norm"} <= record.keys() for record in log)

    predictions = pd.read_parquet(folder / "predictions.parquet")
    assert list(predictions.groupby("split").size()) == [24, 24]
    test = predictions[predictions.split == "test"]
    assert (test.label == test.prediction).mean() == result["metrics"]["test"]["accuracy"]

    sidecar = find_metadata(folder / "checkpoints" / "checkpoint-24")
    assert sidecar is not None
    assert sidecar == find_metadata(folder / "adapter")
    card = (folder / "adapter" / "README.md").read_text()
    for part in ("policy `ailora`", "rank 4", config["model"], "num_labels=2", "blame, praise"):
        assert part in card


def test_the_cards_snippet_loads_the_adapter(config: dict[str, Any], tmp_path: Path) -> None:
    config["data"]["max_train_samples"] = 32
    result = run(config)
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    snippet = card.split("```python\n")[1].split("```")[0].replace("PATH/TO/THIS/FOLDER", str(tmp_path / "run/adapter"))
    scope: dict[str, Any] = {}
    exec(snippet, scope)
    assert isinstance(scope["model"], PeftModelForSequenceClassification)
    run_again = load_run(tmp_path / "run")
    assert run_again.evaluate() == pytest.approx(result["metrics"]["validation"], abs=1e-6)


def test_predictions_belong_to_their_rows_in_any_order_of_training(config: dict[str, Any], tmp_path: Path) -> None:
    """transformers also evaluates in a random order if training groups rows by length."""
    config["data"]["max_train_samples"] = 32
    result = run(config, "training.train_sampling_strategy=group_by_length")
    finished = load_run(tmp_path / "run")
    assert finished.evaluate() == pytest.approx(result["metrics"]["validation"], abs=1e-6)
    finished.predict(config["data"]["validation"], tmp_path / "again.parquet")
    written, again = (pd.read_parquet(tmp_path / name) for name in ("run/predictions.parquet", "again.parquet"))
    written = written[written.split == "validation"]
    assert np.stack(written.scores) == pytest.approx(np.stack(again.scores), abs=1e-6)
    # Otherwise any order would do.
    assert np.stack(written.scores)[::-1] != pytest.approx(np.stack(again.scores), abs=1e-5)


@pytest.mark.parametrize("policy", in_tiers(["ailora", "lora", "full"], fast=["ailora"]))
def test_the_resolved_config_repeats_the_run(config: dict[str, Any], tmp_path: Path, policy: str) -> None:
    run(config, adapter(policy))
    resolved = parse_yaml((tmp_path / "run" / "config.yaml").read_text())
    run(resolved, f"output={tmp_path / 'again'}")
    assert outcome(tmp_path / "again") == outcome(tmp_path / "run")


def test_methods_share_head_order_and_dropout(config: dict[str, Any], tmp_path: Path) -> None:
    """At rate 0 every method stays at the base: the losses of all steps, dropout on, are then equal bit for bit."""
    config["training"]["learning_rate"] = 0.0
    logs = set()
    for policy in ("lora", "ailora", "pissa", "full"):
        run(config, adapter(policy), f"output={tmp_path / policy}")
        lines = (tmp_path / policy / "log.jsonl").read_text().splitlines()
        logs.add(tuple(json.loads(line)["loss"] for line in lines))
    assert len(logs) == 1


def test_label_smoothing_changes_the_training_only(config: dict[str, Any], tmp_path: Path) -> None:
    """The losses of evaluations, of the result and of `ailora evaluate` are those of the labels."""
    result = run(config, "training.label_smoothing_factor=0.5", "training.eval_steps=12")
    scores = result["metrics"]["validation"]
    assert result["history"][-1]["loss"] == pytest.approx(scores["loss"], abs=1e-5)
    assert load_run(tmp_path / "run").evaluate() == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("stale", [None, 5])
def test_scores_of_a_causal_classifier_do_not_depend_on_padding(
    tiny_llama: str, tmp_path: Path, stale: int | None
) -> None:
    """The model reads the last token other than padding; its configuration may name a token that is not the padding."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "llama"))
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": stale}))
    tokenizer = load_tokenizer(str(folder))
    model = load_classifier(str(folder), Labels(("a", "b")), tokenizer).eval()
    texts = ["The car", "The car in the garden is red."]
    alone, padded = (
        model(**tokenizer(batch, padding=True, return_tensors="pt")).logits for batch in (texts[:1], texts)
    )
    assert torch.allclose(alone[0], padded[0], atol=1e-5)


def test_positions_counted_from_the_padding_token_keep_it(tiny_llama: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    config = tf.RobertaConfig(**SIZES, vocab_size=len(tokenizer), pad_token_id=1)
    tf.RobertaModel(config).save_pretrained(tmp_path / "roberta")
    assert load_classifier(str(tmp_path / "roberta"), Labels(("a", "b")), tokenizer).config.pad_token_id == 1


def test_a_tokenizer_without_a_padding_token_keeps_that_of_the_model(tiny_llama: str) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    own = tokenizer.pad_token_id
    tokenizer.pad_token = None
    assert load_classifier(tiny_llama, Labels(("a", "b")), tokenizer).config.pad_token_id == own


def test_a_sample_keeps_the_classes_of_all_rows(config: dict[str, Any], tmp_path: Path) -> None:
    for split in ("train", "validation"):
        (tmp_path / f"{split}.tsv").write_text("sentence\tlabel\n" + "".join(f"word\t{i % 20}\n" for i in range(100)))
    paths = {split: str(tmp_path / f"{split}.tsv") for split in ("train", "validation")}
    config["data"] = {**paths, "text": ["sentence"], "max_train_samples": 10}
    recipe = ClassificationRecipe(load_config(config))
    assert recipe.labels.names == tuple(map(str, range(20)))
    assert [len(recipe.encoded_labels[split]) for split in paths] == [10, 100]


def test_seeds_change_head_and_order(config: dict[str, Any], tmp_path: Path) -> None:
    config["data"]["max_train_samples"] = 32
    losses = [run(config, f"training.seed={s}", f"output={tmp_path / str(s)}")["metrics"] for s in (0, 1)]
    assert losses[0] != losses[1]


def test_regression(config: dict[str, Any], tmp_path: Path) -> None:
    rows = "".join(f'{{"a": "word {i % 7}", "b": "more {i}", "score": {i % 5 - 0.5}}}\n' for i in range(40))
    (tmp_path / "d.jsonl").write_text(rows)
    path = str(tmp_path / "d.jsonl")
    config |= {"metric": ["pearson", "spearman"]}
    config["data"] = {"train": path, "validation": path, "text": ["a", "b"], "label": "score"}
    result = run(config)
    assert result["labels"] is None
    assert set(result["metrics"]["validation"]) == {"loss", "pearson", "spearman"}
    predictions = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert predictions.prediction.dtype == float
    assert "scores" not in predictions


@pytest.mark.parametrize("form", ["stock", "residual"])
def test_other_forms_give_the_same_kind_of_file(config: dict[str, Any], tmp_path: Path, form: str) -> None:
    result = run(config, f"adapter.form={form}", "training.weight_decay=0.1")
    assert load_run(tmp_path / "run").evaluate() == pytest.approx(result["metrics"]["validation"], abs=1e-5)


def test_weight_decay_spares_the_factors_of_the_residual_form(config: dict[str, Any], tmp_path: Path) -> None:
    """At rate 1e-3 and decay 1000 the factors would vanish in a step."""
    decay = ("training.weight_decay=1000", "training.learning_rate=1e-3", "data.max_train_samples=8")
    run(config, "adapter.form=residual", *decay)
    weights = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    starts = [tensor[:4] for name, tensor in weights.items() if "lora_A" in name]
    moves = [tensor[4:] for name, tensor in weights.items() if "lora_A" in name]
    assert all(move.norm() < 0.2 * start.norm() for start, move in zip(starts, moves, strict=True))


def test_predict_and_evaluate_use_a_load_run(config: dict[str, Any], tmp_path: Path, verdicts: Any) -> None:
    result = run(config)
    finished = load_run(tmp_path / "run")
    assert finished.evaluate(verdicts["test"]) == pytest.approx(result["metrics"]["test"], abs=1e-6)
    made = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    sentences = pd.read_csv(verdicts["test"], sep="\t")[["sentence"]]
    sentences.to_csv(tmp_path / "in.csv", index=False)
    for kind in ("tsv", "csv", "jsonl", "parquet"):
        assert finished.predict(tmp_path / "in.csv", tmp_path / f"out.{kind}") == 24
    frame = pd.read_parquet(tmp_path / "out.parquet")
    assert list(frame.columns) == ["row", "sentence", "prediction", "scores"]
    assert list(frame.prediction) == list(made[made.split == "test"].prediction)
    with pytest.raises(ailora.InputError, match=r"ends in one of \.tsv"):
        finished.predict(str(tmp_path / "in.csv"), tmp_path / "out.txt")
    # A run that was moved writes nothing at its former place.
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert load_run(moved).evaluate() == pytest.approx(result["metrics"]["validation"], abs=1e-6)
    assert not (tmp_path / "run").exists()


def test_texts_of_a_file_without_a_header_keep_the_order_of_the_columns(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "in.tsv").write_text("first\tsecond\n")
    config["data"] |= {"columns": ["a", "b", "label"], "text": ["b", "a"]}
    table = ClassificationRecipe(load_config(config))._read_input(str(tmp_path / "in.tsv"))
    assert (table.column("a"), table.column("b")) == (["first"], ["second"])


def test_an_invalid_line_of_a_file_without_a_header_is_named(config: dict[str, Any], tmp_path: Path) -> None:
    """The file may have all columns or the text columns only: both readings fail, at different lines."""
    config["data"] |= {"columns": ["sentence", "label"]}
    recipe = ClassificationRecipe(load_config(config))
    (tmp_path / "in.tsv").write_text("first\t0\nsecond\tthird\t1\n")
    message = r"in\.tsv:2: 3 fields .* expected 2: .*; with only the text columns: .*in\.tsv:1: 2 fields"
    with pytest.raises(ailora.InputError, match=message):
        recipe._read_input(str(tmp_path / "in.tsv"))
    with pytest.raises(ailora.InputError, match=r"nowhere\.tsv: no such file$"):
        recipe._read_input(str(tmp_path / "nowhere.tsv"))


def test_scores_of_a_model_in_half_precision_are_probabilities() -> None:
    logits = np.linspace(0, 4, 2000, dtype=np.float16)[None]
    labels = Labels(tuple(f"{i:04}" for i in range(2000)))
    (scores,) = Predictions(logits, None).to_frame(labels, Examples([("a",)], None, ["f:2"])).scores
    assert sum(scores) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("bad", [[np.nan, np.nan], [np.inf, 1.0], [np.inf, np.inf]])
def test_rows_whose_logits_are_not_finite_have_no_prediction(bad: list[float]) -> None:
    """As for the scores of a split, which are then NaN, a row of NaN is no prediction of the first class."""
    examples = Examples([("a",), ("b",)], None, ["f:2", "f:3"])
    predictions = Predictions(np.array([bad, [0.0, 1.0]]), None)
    frame = predictions.to_frame(Labels(("no", "yes")), examples)
    assert frame["prediction"].isna().tolist() == [True, False]
    assert frame["prediction"][1] == "yes"
    assert np.isnan(frame["scores"][0]).all()
    assert sum(frame["scores"][1]) == pytest.approx(1)
    numbers = Predictions(np.array([bad[:1], [0.5]]), None).to_frame(Labels(None), examples)["prediction"]
    assert numbers.isna().tolist() == [True, False]


def test_a_finished_run_is_not_run_again(config: dict[str, Any], tmp_path: Path) -> None:
    result = run(config)
    before = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    assert run(config) == result
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == before


def test_another_runs_folder_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    config["data"]["max_train_samples"] = 16
    run(config)
    before = outcome(tmp_path / "run")
    with pytest.raises(ailora.InputError, match=r"holds another run \(adapter\.rank: 4 there, 8 now\)"):
        run(config, "adapter.rank=8")
    assert outcome(tmp_path / "run") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ailora.InputError, match="is not empty and holds no run"):
        run(config, f"output={tmp_path / 'mine'}")


def test_an_output_that_is_a_file_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ailora.InputError, match=r"cannot write to .*is not a folder"):
        run(config, f"output={tmp_path / 'file'}", "data.max_train_samples=16")


def test_a_damaged_adapter_is_named(config: dict[str, Any], tmp_path: Path) -> None:
    run(config, "data.max_train_samples=16")
    weights = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ailora.InputError, match="cannot load the adapter"):
        load_run(tmp_path / "run").evaluate()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train=nowhere.tsv", "no such file"),
        ("data.label=gold", "no column 'gold'"),
        ("metric=pearson", "label must be a finite number for regression"),
        (
            "data.columns=[sentence, label]",
            r"train\.tsv:1: the first line is a header .sentence, label., but data\.columns",
        ),
        ("adapter.rank=64", "rank must be .* from 1 to 32, got 64"),
        ("model=./nowhere", "is not a folder"),
        ("training.eval_strategy=sometimes", "training.*sometimes"),
        ("model=builtin:maxilm", "did you mean 'builtin:minilm'"),
    ],
)
def test_bad_input_leaves_no_folder(config: dict[str, Any], tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ailora.AiloraError, match=message):
        run(config, override)
    assert not (tmp_path / "run").exists()


def test_an_unfinished_run_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ailora.InputError, match="not the folder of a run"):
        load_run(tmp_path)


# --- kills ---------------------------------------------------------------------------------------------------------


@pytest.mark.ci
@pytest.mark.parametrize(
    "kills",
    [
        # Before the first checkpoint, and when all is trained and nothing written yet.
        [("Trainer.training_step", 3), ("registry.save_model", 1)],
        # A chain of deaths in one run: each process continues where the one before it had come to.
        pytest.param(
            [
                ("Trainer.training_step", 3),
                ("Trainer._save_optimizer_and_scheduler", 2),  # adapter written, optimizer not
                ("Trainer.training_step", 8),
                ("Trainer._save_rng_state", 1),
                ("RunFolder.mark_complete", 1),
                ("registry.save_model", 1),
                ("classification.write_frame", 1),  # adapter written, predictions not
            ],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["few", "chain"],
)
def test_a_killed_run_continues_bit_for_bit(
    config: dict[str, Any], tmp_path: Path, kills: list[tuple[str, int]]
) -> None:
    whole, broken = copy.deepcopy(config), copy.deepcopy(config)
    whole["output"], broken["output"] = str(tmp_path / "whole"), str(tmp_path / "broken")
    for name, content in (("whole", whole), ("broken", broken)):
        (tmp_path / f"{name}.yaml").write_text(format_yaml(content))
    assert run_process(tmp_path / "whole.yaml", "", 0) == 0
    for point, count in kills:
        assert run_process(tmp_path / "broken.yaml", point, count) == -signal.SIGKILL, point
        assert not (tmp_path / "broken" / "result.json").exists()
    assert run_process(tmp_path / "broken.yaml", "", 0) == 0
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("policy", ["ailora", "full"])
def test_a_run_that_ended_inside_an_epoch_is_not_trained_further(
    config: dict[str, Any], tmp_path: Path, policy: str
) -> None:
    """Killed after its last checkpoint and before its results: no step is left to take."""
    config["training"] |= {"max_steps": 7, "lr_scheduler_type": "constant"}
    run(config, adapter(policy))
    before = outcome(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    assert run(config, adapter(policy))["steps"] == 7
    assert outcome(tmp_path / "run") == before


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["ailora", "full", "lora"])
@pytest.mark.parametrize("step", [1, 6, 11, 17, 23])
def test_a_run_killed_at_any_step_continues(config: dict[str, Any], tmp_path: Path, policy: str, step: int) -> None:
    config["adapter"] = parse_yaml(adapter(policy).removeprefix("adapter="))
    for name in ("whole", "broken"):
        (tmp_path / f"{name}.yaml").write_text(format_yaml({**config, "output": str(tmp_path / name)}))
    assert run_process(tmp_path / "whole.yaml", "", 0) == 0
    assert run_process(tmp_path / "broken.yaml", "Trainer.training_step", step) == -signal.SIGKILL
    assert run_process(tmp_path / "broken.yaml", "", 0) == 0
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_real_data_on_the_real_model(shared: Path, tmp_path: Path) -> None:
    """100 steps on SST-2 bring the validation loss well below chance (ln 2), and the file loads to the same score."""
    result = run(
        {
            "recipe": "classification",
            "model": "builtin:minilm",
            "adapter": {"policy": "ailora", "rank": 8},
            "data": {
                "train": str(shared / "data/sst2/train.tsv"),
                "validation": str(shared / "data/sst2/dev.tsv"),
                "text": ["sentence"],
                "max_train_samples": 3200,
                "max_validation_samples": 500,
            },
            "training": {"learning_rate": 4e-3, "per_device_train_batch_size": 32, "num_train_epochs": 1},
            "output": str(tmp_path / "run"),
        },
    )
    assert result["metrics"]["validation"]["loss"] < 0.5
    again = load_run(tmp_path / "run").evaluate()
    assert again == pytest.approx(result["metrics"]["validation"], abs=1e-5)
