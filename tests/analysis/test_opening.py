"""What an AFTER may be, and what is refused before anything is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ailora.analysis import analyze
from ailora.analysis.load_models import unique_names
from ailora.analysis.model_weights import AdaptedModel, FinetunedModel, FullModel
from ailora.errors import AiloraError, InputError, ModelError
from ailora.recipes.config.loader import load_config
from ailora.recipes.run_folder import RunFolder
from tests.analysis.conftest import Made, adapted, llama, load_all, make_settings, perturbed


def opened(models: Made, after: Path) -> FinetunedModel:
    _, (model,) = load_all(models, "llama", make_settings(), after)
    return model


def refused(models: Made, *after: Path | str, base: str = "llama", **options: object) -> str:
    """The error of an analysis."""
    with pytest.raises(AiloraError) as error:
        analyze(str(models(base)), [str(path) for path in after], **options)  # pyright: ignore[reportArgumentType]
    return str(error.value)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run as it looks when training has just begun."""
    config = {
        "recipe": "causal_lm",
        "model": "builtin:minilm",
        "data": {"train": "a.csv", "validation": "a.csv", "text": "{x}"},
        "training": {"learning_rate": 1e-3},
        "output": str(tmp_path / "run"),
    }
    folder = RunFolder(tmp_path / "run")
    with folder.claimed(load_config(config, to_run=False)):
        pass
    return folder.path


def test_adapters_models_and_runs_are_told_apart(models: Made, run: Path) -> None:
    assert isinstance(opened(models, models("llama-adapter")), AdaptedModel)
    assert isinstance(opened(models, models("llama-full")), FullModel)
    shutil.copytree(models("llama-adapter"), run / "adapter")
    (run / "result.json").write_text(json.dumps({"metrics": {}, "best": {}}))
    assert isinstance(opened(models, run), AdaptedModel)
    shutil.copytree(models("llama-full"), run / "model")
    assert isinstance(opened(models, run), FullModel)


def test_a_run_that_has_not_finished(models: Made, run: Path) -> None:
    assert "the run has not finished" in refused(models, run)
    (run / "result.json").write_text('{"metrics"')
    assert "is damaged" in refused(models, run)
    (run / "result.json").write_text(json.dumps({"metrics": {}, "best": {}}))
    assert "holds no adapter" in refused(models, run)


def test_what_is_no_model(models: Made, tmp_path: Path) -> None:
    assert "neither a folder nor in the hub's cache" in refused(models, "nowhere/at-all")
    assert "is not a folder" in refused(models, tmp_path / "gone")
    shutil.copytree(models("llama-adapter"), tmp_path / "a\udcff")
    assert "the path of the model is not UTF-8" in refused(models, tmp_path / "a\udcff")
    (tmp_path / "empty").mkdir()
    assert "is not a model, adapter or run" in refused(models, tmp_path / "empty")


def test_a_model_of_other_shapes_names_the_tensor(models: Made, tmp_path: Path) -> None:
    model = llama()
    model.config.num_key_value_heads = 4
    type(model)(model.config).save_pretrained(tmp_path / "wide")
    message = refused(models, tmp_path / "wide")
    assert "does not fit the base: expected model.layers.0.self_attn.v_proj.weight (16, 32)" in message
    assert "got model.layers.0.self_attn.v_proj.weight (32, 32)" in message
    assert "does not fit the base" in refused(models, models("gpt2"))


@pytest.mark.parametrize("layers", [2, 6])
def test_a_model_of_another_depth(models: Made, tmp_path: Path, layers: int) -> None:
    llama(layers).save_pretrained(tmp_path / "other")
    message = refused(models, tmp_path / "other")
    assert "does not fit the base" in message
    assert ("no tensor of the checkpoint is" if layers == 2 else "it has 6 projections of the role query") in message


def test_an_adapter_of_another_base(models: Made, tmp_path: Path) -> None:
    """One of other weights is known by its fingerprint, one of other shapes by these."""
    made = adapted(perturbed(llama(), seed=20), tmp_path / "a")
    assert "the weight differs from" in refused(models, made)
    assert "does not fit the base" in refused(models, models("gpt2-adapter"))
    narrow = adapted(llama(2), tmp_path / "b")
    assert refused(models, narrow)
    deep = adapted(llama(6), tmp_path / "c")
    assert "does not fit the base" in refused(models, deep)


def test_adapters_whose_update_is_no_product(models: Made, tmp_path: Path) -> None:
    assert "is a DoRA" in refused(models, adapted(llama(), tmp_path / "dora", dora=True))
    keys = adapted(llama(), tmp_path / "keys", roles=["key"], policy="pissa")
    assert "adapts no projection of the roles" in refused(models, keys)


def test_roles_and_options(models: Made) -> None:
    assert "unknown role 'qery' (did you mean 'query'?)" in refused(models, roles=["qery"])
    assert "has no projection of the role gate" in refused(models, base="gpt2", roles=["query", "gate"])
    assert "roles must be at least one" in refused(models, roles=[])
    for option in ({"rank": 0}, {"points": "dots"}, {"perplexity": 0}, {"seeds": ()}, {"epsilon": 2.0}, {"top": 0}):
        assert next(iter(option)).removesuffix("s") in refused(models, **option)
    for seeds in ((0, 0), (2**32,), (-1,), (True,)):
        assert "seeds must be different whole numbers from 0 to 4294967295" in refused(models, seeds=seeds)


def test_roles_given_by_name_hold_for_a_full_model_too(models: Made) -> None:
    made = analyze(
        models("llama"), [models("llama-full")], roles=["output"], role_names={r"mlp\.down_proj$": "output"}, seeds=(0,)
    )
    assert made.deltas["kind"].value_counts().to_dict() == {
        "model.layers.*.self_attn.o_proj": 4,
        "model.layers.*.mlp.down_proj": 4,
    }
    assert made.info["base"] == str(models("llama"))


def test_nan_is_named_and_the_rest_still_shown(models: Made, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(models("llama-full"), broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.2.self_attn.q_proj.weight"][3, 3] = torch.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    made = analyze(str(models("llama")), [broken, models("llama-other")], seeds=(0,))
    assert [note for note in made.info["notes"] if "layers.2.self_attn.q_proj.weight" in note and "NaN" in note]
    counts = made.deltas.groupby(["model", "role"]).size().to_dict()
    assert counts == {
        ("broken", "query"): 3,
        ("broken", "value"): 4,
        ("llama-other", "query"): 4,
        ("llama-other", "value"): 4,
    }
    assert not made.embedding[["pca_x", "tsne_x"]].isna().any(axis=None)
    whole = analyze(str(broken), [models("llama-full")])
    assert len(whole.deltas) == 7
    assert sum("NaN" in note for note in whole.info["notes"]) == 1
    for name in tensors:
        tensors[name] = tensors[name] * torch.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="no weight of the base can be used"):
        analyze(str(broken), [])


def test_a_stock_adapter_without_a_fingerprint_is_taken_and_said(models: Made, tmp_path: Path) -> None:
    shutil.copytree(models("llama-adapter"), tmp_path / "stock")
    (tmp_path / "stock" / "ailora.json").unlink()
    made = analyze(str(models("llama")), [tmp_path / "stock"])
    assert any("does not record its base weights" in note for note in made.info["notes"])


def test_a_model_of_other_weights_is_shown_with_a_doubt(models: Made, tmp_path: Path) -> None:
    perturbed(llama(), 1.0).save_pretrained(tmp_path / "far")
    made = analyze(str(models("llama")), [tmp_path / "far"])
    assert any("was it trained from this base?" in note for note in made.info["notes"])


def test_names_are_unique_and_none_is_the_base(tmp_path: Path) -> None:
    assert unique_names(["a/x", "b/x", "c/y", "builtin:minilm"]) == ["a/x", "b/x", "y", "minilm"]
    assert unique_names(["out/base"]) == ["out/base"]
    assert unique_names(["/base", "a/x"]) == ["/base", "x"]
    assert unique_names([]) == []
    with pytest.raises(InputError, match="given twice"):
        unique_names(["a/x", "./a/x"])


def test_a_quantized_base_is_refused(models: Made, tmp_path: Path) -> None:
    shutil.copytree(models("llama"), tmp_path / "q")
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, tmp_path / "q" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="quantized"):
        analyze(str(tmp_path / "q"), [])
