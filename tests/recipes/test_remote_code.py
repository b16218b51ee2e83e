"""Code that comes with a model or a data set is not run, and nobody is asked whether it should be."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ailora
from ailora.model_loading import load_on_meta
from ailora.plan.task_type import TaskType
from ailora.recipes.config.loader import load_config
from ailora.recipes.dry_run import dry_run
from ailora.recipes.evaluation.text_generation import build_generation_config
from ailora.recipes.task_models import load_language_model, load_tokenizer

REFUSED = "needs Python code from its repository"

#: Leaves a file beside itself when it is imported.
CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({marker!r}).touch()

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    pass

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there if code of a model has run; who asks whether it may is told yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    return tmp_path / "ran"


@pytest.fixture
def stranger(tiny_llama: str, tmp_path: Path, marker: Path) -> Callable[..., Path]:
    """Make a model with code of its own, which the named files of it ask for."""

    def make(config: dict[str, Any], tokenizer: dict[str, Any]) -> Path:
        folder = tmp_path / "stranger"
        shutil.copytree(tiny_llama, folder)
        (folder / "own.py").write_text(CODE.format(marker=str(marker)))
        for name, extra in (("config.json", config), ("tokenizer_config.json", tokenizer)):
            file = folder / name
            file.write_text(json.dumps(json.loads(file.read_text()) | extra))
        return folder

    return make


UNKNOWN = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
#: transformers knows the configuration, but no such model of it.
OTHER_TASK = {"auto_map": {"AutoModelForSeq2SeqLM": "own.OwnModel"}}
TOKENIZER = {"auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}, "tokenizer_class": "OwnTokenizer"}


def test_models_that_need_their_own_code_are_refused(
    stranger: Callable[..., Path], tiny_llama: str, marker: Path
) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    folder = stranger(UNKNOWN, {})
    with pytest.raises(ailora.InputError, match=REFUSED):
        load_on_meta(folder)
    with pytest.raises(ailora.InputError, match=REFUSED):
        load_language_model(str(folder), tokenizer, TaskType.CAUSAL_LM)
    assert not marker.exists()


def test_a_known_configuration_does_not_let_other_code_in(
    stranger: Callable[..., Path], tiny_llama: str, marker: Path
) -> None:
    folder = stranger(OTHER_TASK, {})
    with pytest.raises(ailora.InputError, match=REFUSED):
        load_on_meta(folder, TaskType.SEQ_2_SEQ_LM)
    with pytest.raises(ailora.InputError, match=REFUSED):
        load_language_model(str(folder), load_tokenizer(tiny_llama), TaskType.SEQ_2_SEQ_LM)
    # Its own class is there, and is taken without the code.
    assert type(load_on_meta(folder, TaskType.CAUSAL_LM)).__module__.startswith("transformers.")
    assert not marker.exists()


def test_tokenizers_that_need_their_own_code_are_refused(
    stranger: Callable[..., Path], language_config: dict[str, Any], marker: Path
) -> None:
    folder = stranger({}, TOKENIZER)
    with pytest.raises(ailora.InputError, match=REFUSED):
        dry_run(load_config(language_config | {"model": str(folder)}))
    assert not marker.exists()


def test_scripts_of_data_sets_are_refused(language_config: dict[str, Any], tmp_path: Path, marker: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "rows.py").write_text(CODE.format(marker=str(marker)))
    language_config["data"] |= {"dataset": str(folder), "train": "train", "validation": "validation"}
    with pytest.raises(ailora.InputError, match="cannot load split 'train'"):
        dry_run(load_config(language_config))
    assert not marker.exists()


@pytest.mark.parametrize("fields", [{"penalty_alpha": 0.6, "top_k": 4}, {"num_beams": 4, "num_beam_groups": 2}])
def test_generation_that_transformers_would_download_is_refused(tiny_llama: str, fields: dict[str, Any]) -> None:
    with pytest.raises(
        ailora.InputError,
        match=r"evaluation\.generate: .* (code from the hub|is only used in sample-based generation modes)",
    ):
        build_generation_config(fields, load_tokenizer(tiny_llama))


def test_every_load_by_configuration_refuses_code() -> None:
    source = Path(ailora.__file__).parent
    calls = [
        (file.name, ast.unparse(node))
        for file in source.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _loads(ast.unparse(node.func), node.args)
    ]
    assert len(calls) >= 5
    assert [call for call in calls if "trust_remote_code=False" not in call[1]] == []


def _loads(function: str, arguments: list[ast.expr]) -> bool:
    """Whether a call loads by classes that a configuration names, or makes a partial that does."""
    named = [function, *map(ast.unparse, arguments[:1])] if function == "partial" else [function]
    auto = ("AutoConfig.", "AutoModel.", "AutoTokenizer.", "auto_class(")
    loads = (".from_pretrained", ".from_config")
    return any(name.startswith(auto) and name.endswith(loads) for name in named)
