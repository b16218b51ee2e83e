"""Inits of PEFT's own and methods of the user's run through the same recipes as ours."""

from __future__ import annotations

import copy
import dataclasses
import importlib.machinery
import json
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import PeftModel
from safetensors.torch import load_file, save_file

import ailora
from ailora.analysis.load_models import load_base, load_finetuned
from ailora.checkpoints import init, inspect, merge
from ailora.plan import find_metadata
from ailora.recipes import registry
from ailora.recipes.config.loader import load_config
from ailora.recipes.config.yaml_file import format_yaml, parse_yaml
from ailora.recipes.dry_run import dry_run
from ailora.recipes.suggest_lr import suggest
from ailora.roles import Role
from ailora.safetensors_io import Checkpoint
from tests.recipes import user_methods
from tests.recipes.language import THINGS, save_t5
from tests.recipes.run_kills import run_process
from tests.recipes.test_classification import outcome

KEEPING = ("lora", "gaussian", "orthogonal", "mica", "eva")
OVERWRITING = ("pissa", "pissa_niter_4", "olora", "lora_ga", "corda")
OWN = "tests.recipes.user_methods"
EPSILON = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def attrs(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT's CorDA imports a decorator from attrs, which it does not install: the standard library's does as well."""
    module = types.ModuleType("attr")
    module.dataclass = dataclasses.dataclass  # type: ignore[attr-defined]
    module.__spec__ = importlib.machinery.ModuleSpec("attr", None)
    monkeypatch.setitem(sys.modules, "attr", module)


@pytest.fixture
def short(config: dict[str, Any]) -> dict[str, Any]:
    """The classification of the other tests, at most six steps of it."""
    config["training"] |= {"max_steps": 6, "eval_steps": 3}
    return config


@pytest.fixture
def short_language(language_config: dict[str, Any]) -> dict[str, Any]:
    del language_config["evaluation"]
    language_config["training"] |= {"max_steps": 6, "eval_steps": 3}
    return language_config


def run(config: dict[str, Any], *overrides: str) -> dict[str, Any]:
    return registry.run(load_config(config, overrides))


def adapter(policy: str, **keys: Any) -> dict[str, Any]:
    return {"policy": policy, "rank": 4, **keys}


@pytest.mark.parametrize("name", [*KEEPING, *OVERWRITING])
@pytest.mark.parametrize("recipe", ["classification", pytest.param("causal_lm", marks=pytest.mark.slow)])
def test_every_init_of_peft_trains_and_loads_again(
    short: dict[str, Any], short_language: dict[str, Any], tmp_path: Path, recipe: str, name: str
) -> None:
    config = short if recipe == "classification" else short_language
    config["adapter"] = adapter(f"peft:{name}")
    result = run(config)
    folder = tmp_path / "run"
    assert result["adapted"] == {"query": 2, "value": 2}
    assert result["steps"] == 6
    first, last = (result["history"][i]["loss"] for i in (0, -1))
    assert last < first if recipe == "causal_lm" else last != first
    files = folder / "adapter"
    assert result["adapter_bytes"] == (files / "adapter_model.safetensors").stat().st_size
    assert find_metadata(folder) is None
    assert f"PEFT's own `{name}`" in (files / "README.md").read_text()
    stored = json.loads((files / "adapter_config.json").read_text())
    assert stored["r"] == stored["lora_alpha"] == (8 if name in OVERWRITING else 4)
    # What was trained over another base is the same function over the untouched one.
    loss = registry.load_run(folder).evaluate()["loss"]
    assert loss == pytest.approx(result["metrics"]["validation"]["loss"], rel=100 * EPSILON)


@pytest.mark.parametrize(
    "name", ["pissa", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "eva", "lora_ga", "corda"))]
)
def test_encoders_with_decoders_too(
    short_language: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    model = save_t5(tmp_path_factory.mktemp("t5"))
    result = run(short_language | {"recipe": "seq2seq", "model": model, "adapter": adapter(f"peft:{name}")})
    # The encoder's two, and the decoder's with those that look at the encoder.
    assert result["adapted"] == {"query": 6, "value": 6}
    loss = registry.load_run(tmp_path / "run").evaluate()["loss"]
    assert loss == pytest.approx(result["metrics"]["validation"]["loss"], rel=100 * EPSILON)


def test_a_stock_reload_gives_the_trained_logits(
    short: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Base and start are taken apart and put together in float32: a rounding of |W| + |B0 A0| each, which a layer
    multiplies by at most its norm. With DoRA the magnitudes, and for every model the head, come along."""
    from ailora.recipes.training import train

    kept: list[Any] = []
    real = train.train
    monkeypatch.setattr("ailora.recipes.registry.train", lambda *a, **k: (kept.append(real(*a, **k)), kept[-1])[1])
    words = tf.AutoTokenizer.from_pretrained(short["model"])(["a warm film", "a dull and cold one"], padding=True)
    batch = {key: torch.tensor(value) for key, value in words.items()}
    for number, keys in enumerate(
        ({"alpha": 8.0}, {"dora": True}, {"rslora": True, "rank": {"query": 4, "value": 2}, "alpha": 6.0})
    ):
        output = tmp_path / str(number)
        run(short | {"adapter": adapter("peft:pissa", **keys), "output": str(output)})
        trained = kept[-1].trainer.model.eval()
        base = tf.AutoModelForSequenceClassification.from_pretrained(short["model"], num_labels=2)
        loaded = PeftModel.from_pretrained(base, output / "adapter").eval()
        with torch.no_grad():
            assert torch.allclose(loaded(**batch).logits, trained(**batch).logits, atol=100 * EPSILON)
            with loaded.disable_adapter():
                assert not torch.allclose(loaded(**batch).logits, trained(**batch).logits, atol=1e-3)


@pytest.mark.parametrize("policy", ["ailora", "peft:lora", "peft:pissa", f"{OWN}:plain"])
def test_a_changed_bit_of_a_finished_runs_adapter_is_named(short: dict[str, Any], tmp_path: Path, policy: str) -> None:
    run(short, f"adapter={{policy: '{policy}', rank: 4}}")
    weights = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4] ^= 1
    weights.write_bytes(content)
    finished = registry.load_run(tmp_path / "run")
    message = r"adapter_model\.safetensors is damaged: .*delete \S+result\.json and run `ailora train"
    with pytest.raises(ailora.InputError, match=message):
        finished.evaluate()
    (tmp_path / "in.tsv").write_text("sentence\na warm film\n")
    with pytest.raises(ailora.InputError, match=message):
        finished.predict(str(tmp_path / "in.tsv"), tmp_path / "out.tsv")
    assert not (tmp_path / "out.tsv").exists()


def test_a_changed_bit_of_a_model_that_was_trained_whole_is_named(short: dict[str, Any], tmp_path: Path) -> None:
    run(short, "adapter={policy: full}")
    finished, folder = registry.load_run(tmp_path / "run"), tmp_path / "run" / "model"
    assert finished.evaluate()
    # An adapter merged into it changes the tensors, and takes no digest of the old ones along.
    init(folder, tmp_path / "adapter", rank=2)
    merge(str(folder), tmp_path / "adapter", tmp_path / "merged")
    Checkpoint.open(tmp_path / "merged").validate_digests()
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-4] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(
        ailora.InputError, match=r"model\.safetensors is damaged: .*delete \S+result\.json and run `ailora"
    ):
        finished.evaluate()
    readers: list[Callable[[], object]] = [
        lambda: inspect(tmp_path / "run"),
        lambda: init(folder, tmp_path / "again", rank=2),
        lambda: merge(str(folder), tmp_path / "adapter", tmp_path / "again"),
        lambda: run(short, f"model={folder}", f"output={tmp_path / 'again'}"),
        lambda: load_finetuned(str(tmp_path / "run"), "run", load_base(short["model"], [Role.QUERY])),
    ]
    for read in readers:
        with pytest.raises(ailora.InputError, match=r"model\.safetensors is damaged"):
            read()
    assert not (tmp_path / "again" / "config.json").exists()


@pytest.mark.parametrize("policy", ["ailora", "peft:lora", "peft:pissa", f"{OWN}:plain"])
def test_labels_and_padding_token_of_every_method_go_into_the_merged_model(
    short: dict[str, Any], tmp_path: Path, policy: str
) -> None:
    config = tf.LlamaConfig(
        vocab_size=30522,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    tf.LlamaModel(config).save_pretrained(tmp_path / "base")
    tokenizer = tf.AutoTokenizer.from_pretrained(short["model"])
    tokenizer.save_pretrained(tmp_path / "base")
    result = run(short, f"adapter={{policy: '{policy}', rank: 4}}", f"model={tmp_path / 'base'}")
    merge(str(tmp_path / "base"), tmp_path / "run", tmp_path / "merged")
    merged = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert list(merged.config.id2label.values()) == result["labels"] == ["blame", "praise"]
    assert merged.config.pad_token_id == tokenizer.pad_token_id == result["pad_token_id"]
    words = tokenizer(["a warm film", "a dull and cold one"], padding=True, return_tensors="pt")
    assert merged(input_ids=words["input_ids"], attention_mask=words["attention_mask"]).logits.shape == (2, 2)


def test_a_damaged_result_does_not_name_the_labels_of_a_merged_model(short: dict[str, Any], tmp_path: Path) -> None:
    run(short, "adapter={policy: 'peft:lora', rank: 4}")
    file = tmp_path / "run" / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"labels": [1, 2]}))
    with pytest.raises(ailora.InputError, match=r"result\.json is damaged: labels must be a list of names"):
        merge(short["model"], tmp_path / "run", tmp_path / "merged")


def test_methods_share_head_order_and_dropout(short: dict[str, Any], tmp_path: Path) -> None:
    """At rate 0 what starts at the base stays there, whether it looked at batches or not; else up to rounding."""
    short["training"]["learning_rate"] = 0.0
    losses = {}
    for policy in ("lora", "peft:lora", "peft:eva", "peft:mica", f"{OWN}:looking", "peft:pissa", "peft:lora_ga"):
        run(short, f"output={tmp_path / policy}", f"adapter={{policy: '{policy}', rank: 4}}")
        lines = (tmp_path / policy / "log.jsonl").read_text().splitlines()
        losses[policy] = [json.loads(line)["loss"] for line in lines]
    for policy, values in losses.items():
        exact = policy not in ("peft:pissa", "peft:lora_ga")
        assert values == (losses["lora"] if exact else pytest.approx(losses["lora"], abs=1e-5)), policy


def test_stock_lora_learns_as_ours(short_language: dict[str, Any], tmp_path: Path) -> None:
    """Where `B` starts at zero and at a rate of zero for `A`, only the random `A` tells the two apart: a run of each is
    near the other, far from one without training."""
    losses = {}
    for policy in ("lora", "peft:lora"):
        config = short_language | {"adapter": adapter(policy), "output": str(tmp_path / policy.replace(":", "-"))}
        losses[policy] = run(config, "training.max_steps=12")["metrics"]["validation"]["loss"]
    assert losses["peft:lora"] == pytest.approx(losses["lora"], rel=0.25)


@pytest.mark.slow
def test_a_run_repeats_itself(short: dict[str, Any], tmp_path: Path) -> None:
    for policy in ("peft:pissa_niter_2", "peft:lora_ga", "peft:eva", f"{OWN}:residual"):
        made = []
        for name in ("one", "two"):
            run(short | {"adapter": adapter(policy), "output": str(tmp_path / policy / name)})
            made.append(outcome(tmp_path / policy / name))
        assert made[0] == made[1], policy


@pytest.mark.ci
@pytest.mark.parametrize("policy", [pytest.param("peft:lora", marks=pytest.mark.slow), "peft:pissa"])
def test_a_killed_run_continues_bit_for_bit(config: dict[str, Any], tmp_path: Path, policy: str) -> None:
    config["adapter"] = adapter(policy)
    for name in ("whole", "broken"):
        (tmp_path / f"{name}.yaml").write_text(format_yaml({**config, "output": str(tmp_path / name)}))
    assert run_process(tmp_path / "whole.yaml", "", 0) == 0
    for point, count in (("Trainer.training_step", 9), ("registry.write_result", 1)):
        assert run_process(tmp_path / "broken.yaml", point, count) == -signal.SIGKILL
    assert run_process(tmp_path / "broken.yaml", "", 0) == 0
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "whole")


def test_a_run_over_another_start_is_not_continued(short: dict[str, Any], tmp_path: Path) -> None:
    short["adapter"] = adapter("peft:pissa")
    run(short)
    (tmp_path / "run" / "result.json").unlink()
    file = tmp_path / "run" / ".initial" / "adapter_model.safetensors"
    factors = load_file(file)
    save_file({name: 1.01 * factor for name, factor in factors.items()}, file)
    with pytest.raises(ailora.ModelError, match="the initial factors differ from those that the run subtracted"):
        run(short)
    file.unlink()
    with pytest.raises(ailora.ModelError, match=r"\.initial/.* is missing"):
        run(short)


def test_learning_rates_by_role(short: dict[str, Any], tmp_path: Path) -> None:
    short["adapter"] = adapter("peft:pissa", learning_rates={"query": 1e-9, "B": 2.0})
    run(short)
    weights = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    moved = {
        role: max(float(w[4:].abs().max()) for name, w in weights.items() if f"{role}.lora_A" in name)
        for role in ("query", "value")
    }
    assert moved["query"] < 1e-6
    assert moved["value"] > 1e-3


def test_forgetting_is_measured_against_the_untouched_base(short_language: dict[str, Any], tmp_path: Path) -> None:
    general = tmp_path / "general.jsonl"
    general.write_text("".join(json.dumps({"text": f"{thing} and {thing}"}) + "\n" for thing in THINGS))
    short_language["evaluation"] = {"general_text": str(general)}
    bases = []
    for policy in ("ailora", "peft:lora", "peft:pissa"):
        config = short_language | {"adapter": adapter(policy), "output": str(tmp_path / policy.replace(":", "-"))}
        bases.append(run(config)["forgetting"]["base_loss"])
    assert bases[1] == bases[0] == pytest.approx(bases[2], rel=1e-5)


@pytest.mark.parametrize("name", ["lora", "pissa", "mica"])
def test_dry_runs_count_what_the_run_trains(short_language: dict[str, Any], name: str) -> None:
    config = load_config(short_language | {"adapter": adapter(f"peft:{name}")})
    made, result = dry_run(config), registry.run(config)
    assert f"peft:{name}" in str(made.plan)
    for key in ("steps", "trainable_parameters", "total_parameters"):
        assert made.facts[key] == result[key], key


def test_what_peft_breaks_is_said_with_its_own_error(
    short: dict[str, Any], short_language: dict[str, Any], tmp_path: Path
) -> None:
    short["adapter"] = adapter("peft:orthogonal", rank={"query": 3, "value": 4})
    with pytest.raises(ailora.ModelError, match=r"peft:orthogonal: PEFT 0\.\d+.* rank to be even, got 3") as caught:
        run(short)
    assert isinstance(caught.value.__cause__, ValueError)
    assert not (tmp_path / "run").exists()
    words = tf.AutoTokenizer.from_pretrained(short_language["model"])
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=len(words), **sizes, **ends)).save_pretrained(tmp_path / "gpt2")
    words.save_pretrained(tmp_path / "gpt2")
    short_language["model"] = str(tmp_path / "gpt2")
    with pytest.raises(ailora.ModelError, match=r"peft:olora: .*c_attn stores its weight as \(in, out\)"):
        run(short_language | {"adapter": adapter("peft:olora")})
    # Of a fused weight all rows are trained, with the ranks of its roles.
    assert run(short_language | {"adapter": adapter("peft:pissa")})["trainable_parameters"] == 2 * 8 * (32 + 96)
    loss = registry.load_run(tmp_path / "run").evaluate()["loss"]
    assert loss == pytest.approx(
        json.loads((tmp_path / "run/result.json").read_text())["metrics"]["validation"]["loss"]
    )


def test_a_function_sees_the_batches_that_are_trained(short: dict[str, Any]) -> None:
    short["adapter"] = {"policy": f"{OWN}:looking"}
    del short["training"]["max_steps"]
    short["training"] |= {"seed": 5, "num_train_epochs": 1}
    result = run(short)
    context, shown, trained = (user_methods.SEEN[key] for key in ("context", "shown", "trained"))
    assert (context.seed, context.config.training["seed"]) == (5, 5)
    assert len(context.batches) == len(shown) == len(trained) == result["steps"] == 12
    for before, fed in zip(shown, trained, strict=True):
        assert before["input_ids"].shape[0] == 8
        for key in ("input_ids", "attention_mask", "labels"):
            assert torch.equal(before[key], fed[key]), key
    assert result["adapted"] == {}


def test_a_function_of_a_language_model(short_language: dict[str, Any], tmp_path: Path) -> None:
    result = run(short_language | {"adapter": {"policy": f"{OWN}:looking"}})
    shown, trained = user_methods.SEEN["shown"], user_methods.SEEN["trained"]
    for before, fed in zip(shown[:6], trained, strict=True):
        assert torch.equal(before["input_ids"], fed["input_ids"])
        assert torch.equal(before["labels"], fed["labels"])
    loss = registry.load_run(tmp_path / "run").evaluate()["loss"]
    assert loss == result["metrics"]["validation"]["loss"]


@pytest.mark.parametrize(
    ("function", "written"),
    [("plain", "adapter"), ("heads_alone", "model"), ("ours", "adapter"), ("residual", "adapter")],
)
def test_what_a_function_returns_is_trained_and_written(
    short: dict[str, Any], tmp_path: Path, function: str, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short["adapter"] = adapter(f"{OWN}:{function}")
    result = run(short)
    folder = tmp_path / "run"
    assert (folder / written).is_dir()
    assert result["adapter_bytes"] == sum(f.stat().st_size for f in (folder / written).glob("*.safetensors"))
    assert result["adapted"] == ({"query": 2} if function == "ours" else {})
    assert (find_metadata(folder) is not None) == (function == "ours")
    # A finished run needs its function no more.
    monkeypatch.delattr(user_methods, function)
    loss = registry.load_run(folder).evaluate()["loss"]
    assert loss == pytest.approx(result["metrics"]["validation"]["loss"], rel=100 * EPSILON)
    (folder / "result.json").unlink()
    monkeypatch.undo()
    again = copy.deepcopy(run(short))
    assert {key: again[key] for key in ("metrics", "trainable_parameters", "adapter_bytes")} == {
        key: result[key] for key in ("metrics", "trainable_parameters", "adapter_bytes")
    }


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "returned None; expected a PeftModel or a PreTrainedModel"),
        ("frozen", "without trainable parameters"),
        ("other_name", "returned adapters named mine; expected a single adapter, named .default."),
        ("half_taken_out", r"changed the base parameter .*query.weight to a value other than the residual"),
        ("other_embeddings", r"changed the base parameter .*word_embeddings.weight to a value other than the residual"),
    ],
)
def test_what_no_run_can_train_is_refused(short: dict[str, Any], tmp_path: Path, function: str, message: str) -> None:
    with pytest.raises(ailora.ModelError, match=message):
        run(short | {"adapter": {"policy": f"{OWN}:{function}"}})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"policy": "peft:pisa"}, r"unknown policy 'peft:pisa' \(did you mean 'peft:pissa'\?\); allowed: peft:lora"),
        ({"policy": "peft:pissa_niter_0"}, "unknown policy"),
        ({"policy": "milor"}, r"did you mean 'milora'\?\); allowed: .*full, peft:lora.*package\.module:function"),
        ({"policy": "peft:lora", "form": "residual"}, "adapter.form 'residual' cannot be combined with peft:lora"),
        ({"policy": "peft:eva", "couple_roles": True}, "adapter.couple_roles cannot be combined with peft:eva"),
        ({"policy": "peft:mica", "dora": True}, "adapter.dora cannot be combined with peft:mica"),
        ({"policy": "peft:orthogonal", "rank": 3}, "adapter.rank must be even for peft:orthogonal, got 3"),
        ({"policy": "peft:eva", "rank": {"query": 4}}, "adapter.rank must be a single number for peft:eva"),
        ({"policy": "no_such_package.module:f"}, "the module no_such_package.module cannot be imported"),
        ({"policy": f"{OWN}:absent"}, "has no attribute 'absent'; expected a function"),
        ({"policy": f"{OWN}:NOT_CALLABLE"}, "'NOT_CALLABLE' is of type int"),
        ({"policy": f"{OWN}:"}, "must be .peft:NAME. or .package.module:function., got"),
        ({"policy": "a/b.py:f"}, "must be .peft:NAME. or .package.module:function., got"),
    ],
)
def test_bad_policies_are_refused_before_anything_is_loaded(
    config: dict[str, Any], adapter: dict[str, Any], message: str
) -> None:
    config |= {"model": "no/such-model", "adapter": adapter}
    with pytest.raises(ailora.InputError, match=message):
        load_config(config)


def test_what_needs_a_policy_of_ours_says_so(short: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    quantized = short | {"adapter": adapter("peft:pissa"), "quantization": {"load_in_4bit": True}}
    with pytest.raises(ailora.InputError, match="quantization: peft:pissa overwrites base weights"):
        load_config(quantized)
    for policy in ("peft:lora", f"{OWN}:plain"):
        with pytest.raises(ailora.InputError, match=f"got adapter.policy {policy}"):
            suggest(load_config(short | {"adapter": {"policy": policy}}), 1e-3)
    with pytest.raises(ailora.InputError, match="a dry run cannot plan"):
        dry_run(load_config(short | {"adapter": {"policy": f"{OWN}:plain"}}))
    with pytest.raises(ailora.InputError, match="learning_rates cannot be combined with"):
        run(short | {"adapter": {"policy": f"{OWN}:plain", "learning_rates": {"query": 2.0}}})
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ailora.InputError, match="peft:lora cannot be combined with FSDP"):
        run(short | {"adapter": adapter("peft:lora")})


def test_corda_needs_a_package_that_peft_does_not_install(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ailora.recipes.baselines.peft_inits.find_spec", lambda name: None)
    with pytest.raises(ailora.InputError, match="peft:corda needs the package attrs"):
        load_config(config | {"adapter": adapter("peft:corda")})


def test_the_written_configuration_is_the_runs(short: dict[str, Any], tmp_path: Path) -> None:
    short["adapter"] = adapter("peft:lora", form="anchored")
    run(short)
    written = parse_yaml((tmp_path / "run" / "config.yaml").read_text())
    assert "form" not in written["adapter"]
    assert load_config(written) == load_config(short)


@pytest.mark.parametrize("recipe", ["classification", "causal_lm"])
def test_further_callbacks_are_the_trainers(short: dict[str, Any], short_language: dict[str, Any], recipe: str) -> None:
    class Counts(tf.TrainerCallback):
        steps = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.steps += 1

    counts = Counts()
    registry.run(load_config(short if recipe == "classification" else short_language), callbacks=[counts])
    assert counts.steps == 6
