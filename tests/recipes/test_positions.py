"""Rows that are longer than a model's positions are refused by file and line, before a weight is loaded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import ailora
from ailora.recipes.config.loader import load_config
from ailora.recipes.data.tokenize_language import Tokenization
from ailora.recipes.dry_run import dry_run
from ailora.recipes.inference.text_generator import TextGenerator
from ailora.recipes.position_limits import PositionLimits
from ailora.recipes.registry import make_recipe
from ailora.recipes.suggest_lr import suggest
from tests.recipes.language import tokenizer
from tests.tiny_models import tiny_model

#: Model type -> positions of what it reads and writes, of tiny models with 64.
LIMITED = {
    **dict.fromkeys(("gpt2", "bert", "opt", "distilbert", "gptj", "ctrl", "mpt", "nystromformer", "deberta-v2"), 64),
    **dict.fromkeys(("bart", "pegasus", "led"), 64),
    # Theirs begin after the row of padding.
    **dict.fromkeys(("roberta", "mpnet"), 62),
}
UNLIMITED = ("llama", "t5", "bloom", "m2m_100", "mamba", "fsmt")


def takes(model: Any, read: int, written: int = 4) -> bool:
    inputs = {"input_ids": torch.randint(5, 60, (1, read))}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(5, 60, (1, written))
    try:
        with torch.no_grad():
            model.eval()(**inputs)
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("model_type", LIMITED)
def test_limits_are_where_models_fail(model_type: str) -> None:
    model: Any = tiny_model(model_type)
    limits, limit = PositionLimits.from_model(model), LIMITED[model_type]
    assert (limits.max_input, limits.max_output, limits.context) == (limit, limit, None)
    assert takes(model, limit)
    assert not takes(model, limit + 1)
    if model.config.is_encoder_decoder:
        assert takes(model, 4, limit)
        assert not takes(model, 4, limit + 1)


@pytest.mark.parametrize("model_type", UNLIMITED)
def test_models_without_a_table_have_no_limit(model_type: str) -> None:
    model: Any = tiny_model(model_type)
    limits = PositionLimits.from_model(model)
    assert (limits.max_input, limits.max_output) == (None, None)
    assert limits.context == (64 if model_type == "llama" else None)
    assert takes(model, 200, 200)


def save(config: tf.PretrainedConfig, folder: Path) -> str:
    """A model of a configuration, with small weights of no use."""
    words = tokenizer()
    config.vocab_size = len(words)
    config.architectures = None
    tf.AutoModel.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def gpt2(tmp_path: Path) -> str:
    return save(tf.GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=16), tmp_path / "gpt2")


@pytest.fixture
def bart(tmp_path: Path) -> str:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = tf.BartConfig(**sizes, d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=24)
    return save(config, tmp_path / "bart")


TOO_LONG = r"train\.csv:\d+: \d+ tokens exceed the 16 positions of the model \(\d+ rows are too long\); decrease "


def test_causal_rows(language_config: dict[str, Any], gpt2: str) -> None:
    config = load_config(language_config | {"model": gpt2})
    with pytest.raises(ailora.InputError, match=TOO_LONG + r"training\.max_length"):
        dry_run(config)
    with pytest.raises(ailora.InputError, match=TOO_LONG):
        suggest(config, 1e-3, batches=2, rows=2)


def test_prompts_leave_room_for_what_is_generated(language_config: dict[str, Any], tmp_path: Path) -> None:
    config = tf.GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=50)
    language_config["model"] = save(config, tmp_path / "longer")
    message = r"validation\.csv:\d+ with its completion: \d+ tokens exceed the 50 .* decrease max_new_tokens from 48"
    with pytest.raises(ailora.InputError, match=message):
        dry_run(load_config(language_config, ["evaluation.generate.max_new_tokens=48"]))
    dry_run(load_config(language_config))


def test_prompts_of_a_scored_file_leave_room_too(language_config: dict[str, Any], tmp_path: Path) -> None:
    """They are refused before the model is loaded."""
    config = tf.GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=50)
    language_config["model"] = save(config, tmp_path / "longer")
    recipe = make_recipe(load_config(language_config, ["evaluation.generate.max_new_tokens=48"]))
    with pytest.raises(ailora.InputError, match=r"validation\.csv:\d+ with its completion: \d+ tokens exceed the 50 "):
        recipe.score(lambda: pytest.fail("loaded"), language_config["data"]["validation"])


@pytest.mark.parametrize(("strategy", "refused"), [("bfd", False), ("wrapped", True)])
def test_packed_rows_count_as_they_are_packed(
    language_config: dict[str, Any], tmp_path: Path, strategy: str, refused: bool
) -> None:
    config = tf.GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=60)
    language_config |= {"model": save(config, tmp_path / "packed"), "evaluation": {}}
    language_config["training"] |= {"packing": True, "packing_strategy": strategy, "max_length": 100}
    loaded = load_config(language_config)
    if refused:
        with pytest.raises(ailora.InputError, match=r"100 tokens exceed the 60 positions"):
            dry_run(loaded)
    else:
        dry_run(loaded)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.prompt='{mr} {mr}'"],
            r"train\.csv:\d+: \d+ tokens exceed the 24 positions .*decrease data\.max_length",
        ),
        (
            ["data.prompt='{ref}'", "data.completion='{mr} {mr}'"],
            r"train\.csv:\d+: \d+ tokens .* 24 .*decrease data\.max_completion_length",
        ),
        (
            ["data.max_length=20", "data.max_completion_length=20", "evaluation.generate={max_new_tokens: 25}"],
            r"evaluation\.generate: 25 tokens exceed the 24 positions of the model; decrease max_new_tokens",
        ),
    ],
)
def test_seq2seq_rows(language_config: dict[str, Any], bart: str, overrides: list[str], message: str) -> None:
    language_config |= {"recipe": "seq2seq", "model": bart, "evaluation": {}}
    language_config["data"] |= {"prompt": "{mr}", "completion": "{ref}"}
    with pytest.raises(ailora.InputError, match=message):
        dry_run(load_config(language_config, overrides))


def test_classified_rows(config: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config["model"] = save(tf.BertConfig(**sizes, max_position_embeddings=8), tmp_path / "bert")
    with pytest.raises(
        ailora.InputError, match=r"train\.tsv:\d+: \d+ tokens .* 8 positions .*decrease data\.max_length"
    ):
        dry_run(load_config(config))
    dry_run(load_config(config, ["data.max_length=8"]))


def test_rows_beyond_the_context_of_rotary_models_are_counted(
    language_config: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = tf.LlamaConfig(**sizes, max_position_embeddings=16)
    language_config["model"] = save(config, tmp_path / "llama")
    with caplog.at_level(logging.WARNING, logger="ailora"):
        dry_run(load_config(language_config))
    assert "of 96 training rows are longer than the 16 tokens" in caplog.text
    assert "set training.max_length to truncate the rows" in caplog.text


def test_prompts_of_a_loaded_model(gpt2: str) -> None:
    model: Any = tf.GPT2LMHeadModel(tf.AutoConfig.from_pretrained(gpt2))
    generator = TextGenerator(model, Tokenization(tokenizer()))
    with pytest.raises(ailora.InputError, match=r"prompt 2 .*: .* tokens exceed the 16 positions"):
        generator.generate(["a", "thing[car] " * 8], {"max_new_tokens": 2})
