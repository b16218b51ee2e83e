"""What a run would do is said before it does it, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ailora
from ailora.recipes import registry
from ailora.recipes.config.loader import load_config, to_yaml
from ailora.recipes.dry_run import dry_run


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


def test_what_the_loss_counts_is_marked(language_config: dict[str, Any]) -> None:
    made = dry_run(load_config(language_config))
    assert len(made.examples) == 2
    for example in made.examples:
        prompt, _, rest = example.partition("[[")
        assert prompt.endswith(" =>")
        assert rest.endswith("</s>]]")
    assert made.plan is not None
    assert "2 query" in str(made.plan)


def test_classified_rows_show_their_label(config: dict[str, Any]) -> None:
    made = dry_run(load_config(config))
    assert all("->" in example for example in made.examples)
    # The head is trained as well.
    assert made.facts["train_rows"] == 96


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter.rank=999", "rank 999 is not possible"),
        ("data.prompt='{question}'", "names the column 'question'"),
        ("adapter.learning_rates={up: 2}", "role up is not adapted"),
        ("training.max_length=8", "nothing of the completion is left"),
        ("evaluation.generate={do_sample: true, temperature: 0.0}", "generate: ValueError: .temperature"),
        ("evaluation.generate.repetition_penalty=0.0", "generate: ValueError: .penalty"),
        ("evaluation.generate.bad_words_ids=[[99999]]", "generate: ValueError: The model vocabulary"),
        ("evaluation.generate.forced_eos_token_id=99999", "generate: IndexError"),
        ("evaluation.generate.num_return_sequences=2", "a prompt has one completion"),
        ("evaluation.generate.return_dict_in_generate=true", "completions are texts"),
    ],
)
def test_what_the_run_would_refuse_is_refused(language_config: dict[str, Any], override: str, message: str) -> None:
    with pytest.raises(ailora.InputError, match=message):
        dry_run(load_config(language_config, [override]))


@pytest.mark.parametrize(
    "fields",
    ["stop_strings: [x]", "token_healing: true", "min_new_tokens: 3", "cache_implementation: static", "num_beams: 2"],
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
