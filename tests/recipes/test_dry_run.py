"""What a run would do is said before it does it, and nothing is written."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import ailora
from ailora.recipes import registry
from ailora.recipes.config.loader import load_config, to_yaml
from ailora.recipes.dry_run import _format_example, dry_run
from ailora.recipes.registry import make_recipe
from ailora.recipes.training.setup import load_and_adapt
from tests.recipes.language import tokenizer

QUANTIZED_CACHE = "cache_implementation: quantized, cache_config"


@pytest.mark.parametrize(
    "adapter", ["{policy: ailora, rank: 4}", pytest.param("{policy: full}", marks=pytest.mark.slow)]
)
def test_counts_are_those_of_the_run(language_config: dict[str, Any], tmp_path: Path, adapter: str) -> None:
    config = load_config(language_config, [f"adapter={adapter}"])
    facts = dry_run(config).facts
    assert not (tmp_path / "run").exists()
    result = registry.run(config)
    for key in ("steps", "trainable_parameters", "total_parameters"):
        assert facts[key] == result[key], key
    assert 0 < facts["train_seconds"] < 60


@pytest.mark.parametrize(
    ("adapter", "kept"),
    [
        ({"policy": "ailora"}, 1),
        ({"policy": "pissa", "form": "residual"}, 1),
        ({"policy": "ailora", "form": "stock"}, 0),
        ({"policy": "lora"}, 0),
    ],
)
def test_entries_of_the_anchor_are_as_many_as_adapt_keeps(
    language_config: dict[str, Any], adapter: dict[str, str], kept: int
) -> None:
    config = load_config(language_config | {"adapter": {"rank": 4, **adapter}})
    facts = dry_run(config).facts
    assert facts["optimizer_bytes"] == facts["trainable_parameters"] * (16 + 4 * kept)
    recipe = make_recipe(config)
    recipe.prepare()
    model, _ = load_and_adapt(recipe)
    anchors = sum(entry.numel() for name, entry in model.named_buffers() if name.endswith("anchor"))
    assert anchors == facts["trainable_parameters"] * kept


def test_packed_rows_count_for_steps(language_config: dict[str, Any]) -> None:
    language_config["training"] |= {"packing": True, "packing_strategy": "wrapped", "max_length": 100}
    facts = dry_run(load_config(language_config | {"evaluation": {}})).facts
    packed_rows = math.ceil(round(facts["tokens_per_row"]["mean"] * 96) / 100)
    assert facts["train_rows"] == 96
    assert facts["steps"] == 2 * math.ceil(packed_rows / 8)


def test_what_the_loss_counts_is_marked(language_config: dict[str, Any]) -> None:
    made = dry_run(load_config(language_config))
    assert len(made.examples) == 2
    for example in made.examples:
        prompt, _, rest = example.partition("[[")
        assert prompt.endswith(" =>")
        assert rest.endswith("</s>]]")
    assert made.plan is not None
    assert "2 query" in str(made.plan)


def test_completions_are_shown_apart_from_prompts_of_equal_length() -> None:
    """An encoder-decoder's labels are a text of their own, whatever their number."""
    words = tokenizer()
    row = {"input_ids": words("red car")["input_ids"], "labels": words("red cup")["input_ids"]}
    assert len(row["input_ids"]) == len(row["labels"])
    assert _format_example(row, words, has_encoder=True) == "red car  ->  [[red cup]]"


def test_classified_rows_show_their_label(config: dict[str, Any]) -> None:
    made = dry_run(load_config(config))
    assert all("->" in example for example in made.examples)
    assert made.facts["train_rows"] == 96


@pytest.mark.parametrize("adapter", ["{policy: ailora}", "{policy: 'peft:mica', rank: 2}"])
def test_a_head_counts_as_it_does_in_the_run(config: dict[str, Any], adapter: str) -> None:
    config["data"]["max_train_samples"] = 8
    made = load_config(config, [f"adapter={adapter}", "training.max_steps=1"])
    facts, result = dry_run(made).facts, registry.run(made)
    for key in ("trainable_parameters", "total_parameters"):
        assert facts[key] == result[key], key


def test_heads_and_copies_count_beside_a_dora(config: dict[str, Any]) -> None:
    made = load_config(config, ["adapter={policy: ailora, dora: true, modules_to_save: [word_embeddings]}"])
    model, _ = load_and_adapt(make_recipe(made))
    parameters = [(p.numel(), p.requires_grad) for p in model.parameters()]
    facts = dry_run(made).facts
    assert facts["trainable_parameters"] == sum(numel for numel, trained in parameters if trained)
    assert facts["total_parameters"] == sum(numel for numel, _ in parameters)


#: Prints what a dry run estimates, or what the run measures.
_MEMORY = """
import json, sys
from ailora.recipes import registry
from ailora.recipes.config.loader import load_config
from ailora.recipes.dry_run import dry_run

config = load_config(json.loads(sys.argv[1]))
print(dry_run(config).facts["memory_bytes"] if sys.argv[2] == "dry" else registry.run(config)["peak_memory_bytes"])
"""


def measure(config: dict[str, Any], how: str) -> int:
    command = [sys.executable, "-c", _MEMORY, json.dumps(config), how]
    return int(subprocess.run(command, capture_output=True, check=True).stdout.split()[-1])


@pytest.mark.ci
@pytest.mark.skipif(torch.cuda.is_available() or sys.platform != "linux", reason="of a process on a CPU")
def test_the_peak_of_a_process_is_its_own_and_not_its_parent_s() -> None:
    read = (
        "from ailora.recipes.training.results import _read_peak_memory, read_resident_memory; "
        "print(_read_peak_memory() - read_resident_memory())"
    )
    parent = f"import subprocess, sys; held = b'x' * 2**30; subprocess.run([sys.executable, '-c', {read!r}])"
    output = subprocess.run([sys.executable, "-c", parent], capture_output=True, check=True, text=True).stdout
    # Imports hold little more at their peak than at their end, and less than the parent's GiB. The second of the two
    # readings may be larger by the pages that it needs itself.
    assert -(2**20) <= int(output.split()[-1]) < 2**28


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available() or sys.platform != "linux", reason="of a process on a CPU")
def test_memory_is_as_estimated(config: dict[str, Any], verdicts: dict[str, Path], tmp_path: Path) -> None:
    for split, file in verdicts.items():
        table = pd.read_csv(file, sep="\t")
        table["sentence"] = table["sentence"].map(lambda text: " ".join([text] * 8))
        config["data"][split] = str(tmp_path / f"{split}.csv")
        table.to_csv(config["data"][split], index=False)
    config["model"] = "builtin:minilm"
    config["training"] |= {"per_device_train_batch_size": 32, "max_steps": 2}
    assert 0.75 < measure(config, "dry") / measure(config, "run") < 1.3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.rank=999", "rank must be a whole number from 1 to 32, got 999"),
        ("data.prompt='{question}'", "names the column 'question'"),
        ("adapter.learning_rates={up: 2}", "role up is not adapted"),
        ("training.max_length=8", "truncation to 8 tokens removes the completion"),
        ("evaluation.generate={do_sample: true, temperature: 0.0}", "generate: ValueError: .temperature"),
        ("evaluation.generate.repetition_penalty=0.0", "generate: ValueError: .penalty"),
        ("evaluation.generate.bad_words_ids=[[99999]]", "generate: ValueError: The model vocabulary"),
        ("evaluation.generate.forced_eos_token_id=99999", "generate: IndexError"),
        ("evaluation.generate.num_return_sequences=2", "num_return_sequences must be 1"),
        ("evaluation.generate.return_dict_in_generate=true", "return_dict_in_generate must be false"),
        ("evaluation.generate.num_beams=100000000", "num_beams must be at most 361, the size of the vocabulary"),
        (f"evaluation.generate={{{QUANTIZED_CACHE}: {{q_group_size: 48}}}}", "must be a divisor"),
        ("evaluation.generate.cache_implementation=paging", "generate: Invalid .cache_implementation"),
        (
            "evaluation.generate={cache_implementation: quantized, cache_config: {backend: int4}}",
            "generate: ValueError: Unknown quantization backend .int4",
        ),
        ("evaluation.generate.temperature=0.5", "generate: .temperature.: .do_sample. is not set"),
        ("evaluation.generate.early_stopping=true", "generate: .early_stopping.: .num_beams. is set to None"),
    ],
)
def test_what_the_run_would_refuse_is_refused(language_config: dict[str, Any], override: str, message: str) -> None:
    with pytest.raises(ailora.InputError, match=message):
        dry_run(load_config(language_config, [override]))


@pytest.mark.parametrize(
    "fields",
    [
        "stop_strings: [x]",
        "token_healing: true",
        "min_new_tokens: 3",
        "cache_implementation: static",
        f"{QUANTIZED_CACHE}: {{q_group_size: 16}}",
        "num_beams: 2",
    ],
)
def test_what_the_run_would_generate_with_is_let_through(language_config: dict[str, Any], fields: str) -> None:
    dry_run(load_config(language_config, [f"evaluation.generate={{max_new_tokens: 4, {fields}}}"]))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("file", "is not a folder"),
        ("file/run", "is not a folder"),
        ("foreign", "holds no run"),
        ("other", r"holds another run \(adapter.rank: 2 there"),
        ("link", "is a link"),
    ],
)
def test_an_output_that_the_run_could_not_have_is_refused(
    language_config: dict[str, Any], tmp_path: Path, output: str, message: str
) -> None:
    config = load_config(language_config, [f"output={tmp_path / output}"])
    (tmp_path / "file").touch()
    for folder in ("foreign", "other", "link"):
        (tmp_path / folder).mkdir()
    (tmp_path / "foreign" / "thesis.tex").touch()
    (tmp_path / "other" / "config.yaml").write_text(to_yaml(load_config(language_config, ["adapter.rank=2"])))
    (tmp_path / "link" / "result.json").symlink_to(tmp_path / "file")
    (tmp_path / "link" / "config.yaml").write_text(to_yaml(config))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ailora.InputError, match=message):
        dry_run(config)
    assert sorted(tmp_path.rglob("*")) == before
