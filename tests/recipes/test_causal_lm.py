"""Language models: what a run trains, measures and writes, how it repeats, how it survives being killed."""

from __future__ import annotations

import copy
import json
import logging
import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import ailora
from ailora.recipes import registry
from ailora.recipes.causal_lm import CausalLMRecipe
from ailora.recipes.config.language_config import CausalLMConfig, EvaluationConfig
from ailora.recipes.config.loader import load_config
from ailora.recipes.config.yaml_file import format_yaml, parse_yaml
from ailora.recipes.data.language_rows import Row, Rows
from ailora.recipes.data.readers import read_tables
from ailora.recipes.data.tokenize_language import Tokenization, prepare_tokenizer
from ailora.recipes.evaluation.language_evaluation import Evaluator
from ailora.recipes.evaluation.perplexity import Likelihood
from ailora.recipes.evaluation.text_generation import build_generation_config
from ailora.recipes.inference.text_generator import TextGenerator
from ailora.recipes.inference.trained_run import TrainedRun
from ailora.recipes.run_folder import RunFolder
from tests.recipes.language import CHAT_TEMPLATE, THINGS, tokenizer
from tests.recipes.run_kills import run_process

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
#: Answers end with a token other than the end-of-text token, as in the templates of Gemma and Phi.
TURN_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<system>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
#: What differs between two runs that are the same.
TIMES = ("init_seconds", "train_seconds", "peak_memory_bytes", "config")


def run(config: dict[str, Any], *overrides: str) -> dict[str, Any]:
    return registry.run(load_config(config, overrides))


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that a finished run has written, times aside."""
    result = json.loads((folder / "result.json").read_text())
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    return {
        "result": {key: value for key, value in result.items() if key not in TIMES},
        "log": (folder / "log.jsonl").read_text(),
        "samples": (folder / "samples.jsonl").read_text(),
        "weights": {key: value.tolist() for key, value in weights.items()},
    }


# --- what a run writes ---------------------------------------------------------------------------------------------


def test_a_run_learns_and_its_files_say_so(language_config: dict[str, Any], tmp_path: Path) -> None:
    result = run(language_config)
    folder = tmp_path / "run"
    losses = [record["loss"] for record in result["history"]]
    assert losses[-1] < losses[0] - 0.1
    scores = result["metrics"]["validation"]
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    assert scores.keys() == {"loss", "perplexity", "bleu", "rouge_l"}
    assert result["best"]["loss"]["loss"] == min(losses)
    assert result["adapted"] == {"query": 2, "value": 2}
    assert {"config.yaml", "ailora.json", "log.jsonl", "samples.jsonl", "result.json", "adapter"} <= {
        file.name for file in folder.iterdir()
    }
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 8
    assert all(sample["prompt"].endswith(" =>") and sample["references"] for sample in samples)
    assert run(language_config) == json.loads((folder / "result.json").read_text())


def test_the_adapter_is_a_stock_one(language_config: dict[str, Any], tmp_path: Path) -> None:
    """Loaded by PEFT alone, the model has the loss that the run has measured, token by token."""
    result = run(language_config)
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(language_config["model"])
    total, count = 0.0, 0
    for line in Path(language_config["data"]["validation"]).read_text().splitlines()[1:]:
        mr, ref = line.strip('"').split('",')
        prompt, whole = f"{mr} =>", f"{mr} => {ref}</s>"
        ids = torch.tensor([tokenizer(whole)["input_ids"]])
        start = len(tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, start - 1 : -1]
        total += torch.nn.functional.cross_entropy(logits, ids[0, start:], reduction="sum").item()
        count += ids.shape[1] - start
    assert total / count == pytest.approx(result["metrics"]["validation"]["loss"], rel=1e-4)
    assert "AutoPeftModelForCausalLM" in (tmp_path / "run" / "adapter" / "README.md").read_text()


def test_rows_of_one_input_are_its_references(language_config: dict[str, Any], tmp_path: Path) -> None:
    run(language_config, "evaluation.max_samples=null", "training.max_steps=1", "training.eval_steps=1")
    lines = Path(language_config["data"]["validation"]).read_text().splitlines()[1:]
    inputs = {line.strip('"').split('",')[0] for line in lines}
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {sample["prompt"].removesuffix(" =>") for sample in samples} == inputs
    assert sum(len(sample["references"]) for sample in samples) == len(lines)


@pytest.mark.ci
def test_forgetting_is_the_rise_over_the_untouched_base(language_config: dict[str, Any], tmp_path: Path) -> None:
    general = tmp_path / "general.jsonl"
    general.write_text("".join(json.dumps({"text": f"{thing} and {thing}"}) + "\n" for thing in THINGS))
    language_config["evaluation"] = {"general_text": str(general)}
    rises = {}
    adapters = {
        "anchored": "{policy: ailora}",
        "residual": "{policy: ailora, form: residual}",
        "full": "{policy: full}",
    }
    for name, adapter in adapters.items():
        result = run(language_config, f"adapter={adapter}", f"output={tmp_path / name}")
        rises[name] = result["forgetting"]
        assert result["forgetting"]["rise"] == pytest.approx(
            result["forgetting"]["loss"] - result["forgetting"]["base_loss"]
        )
    bases = [rise["base_loss"] for rise in rises.values()]
    # Batches of a data set that is shared out alike: the same sums, but for the residual form's rounding of the base.
    assert bases[0] == bases[2]
    assert bases[1] == pytest.approx(bases[0], rel=1e-5)
    model = AutoModelForCausalLM.from_pretrained(language_config["model"])
    tokenizer = AutoTokenizer.from_pretrained(language_config["model"])
    batch = [tokenizer(f"{t} and {t}</s>", return_tensors="pt")["input_ids"] for t in THINGS]
    with torch.no_grad():
        nll = [model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1) for ids in batch]
    assert bases[0] == pytest.approx(sum(nll) / sum(ids.shape[1] - 1 for ids in batch), rel=1e-4)


def test_the_likelihood_is_the_same_in_any_batch_and_for_any_tokenizer() -> None:
    """Padding on the left would move the rows of a model with position embeddings."""
    words = tokenizer()
    words.padding_side = "left"
    prepare_tokenizer(words, name="m")
    config = GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=64, vocab_size=len(words), initializer_range=0.5)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    rows = Rows([Row("a", None, "The red car", {}), Row("b", None, "There is a blue cup in the garden of the car", {})])
    evaluator = Evaluator(EvaluationConfig(), Tokenization(words), None, 1)
    dataset = evaluator.tokenization.tokenize(rows)
    alone = evaluator.compute_likelihood(model, dataset).loss
    assert replace(evaluator, batch_size=2).compute_likelihood(model, dataset).loss == pytest.approx(alone, rel=1e-5)


def test_the_loss_is_infinite_only_beyond_numbers() -> None:
    assert Likelihood(2.0, 4).perplexity == math.exp(0.5)
    assert Likelihood(4e3, 4).perplexity == math.inf
    assert math.isnan(Likelihood(math.nan, 4).perplexity)


@pytest.mark.ci
@pytest.mark.parametrize(
    "data",
    [
        {"text": "{mr} => {ref}"},
        {
            "messages": [{"role": "user", "content": "{mr}"}, {"role": "assistant", "content": "{ref}"}],
            "chat_template": CHAT_TEMPLATE,
        },
    ],
    ids=["text", "messages"],
)
@pytest.mark.parametrize("training", [{}, {"packing": True, "packing_strategy": "wrapped", "max_length": 48}])
def test_text_and_conversations_are_trained(
    language_config: dict[str, Any], facts: dict[str, str], data: dict[str, Any], training: dict[str, Any]
) -> None:
    language_config["data"] = {**facts, **data}
    language_config["training"] |= training
    if "text" in data:
        del language_config["evaluation"]
    result = run(language_config)
    losses = [record["loss"] for record in result["history"]]
    assert losses[-1] < losses[0]


def test_loss_on_the_assistants_messages_only(language_config: dict[str, Any], facts: dict[str, str]) -> None:
    messages = [{"role": "user", "content": "{mr}"}, {"role": "assistant", "content": "{ref}"}]
    language_config["data"] = {**facts, "messages": messages, "chat_template": CHAT_TEMPLATE}
    whole = run(language_config)
    only = run(language_config, "training.assistant_only_loss=true", f"output={language_config['output']}-only")
    assert only["metrics"]["validation"]["loss"] != whole["metrics"]["validation"]["loss"]


def test_tensorboard_gets_what_the_log_gets(language_config: dict[str, Any], tmp_path: Path) -> None:
    run(language_config, "training.report_to=tensorboard")
    (events,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    read = EventAccumulator(str(events)).Reload()
    losses = {event.step: event.value for event in read.Scalars("train/loss")}
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert losses == {record["step"]: pytest.approx(record["loss"], rel=1e-5) for record in logged}
    assert "eval/loss" in read.Tags()["scalars"]


# --- learning rates of roles ---------------------------------------------------------------------------------------


def changes(folder: Path) -> dict[str, float]:
    """How far the factors of each projection have moved in the first step, by `q_proj.A` and the like."""
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    moved: dict[str, float] = {}
    for name, weight in weights.items():
        module, factor = name.split(".")[-3], name.split(".")[-2][-1]
        delta = weight.chunk(2, dim=0)[1] if factor == "A" else weight.chunk(2, dim=1)[0]
        moved[f"{module}.{factor}"] = max(moved.get(f"{module}.{factor}", 0), delta.abs().max().item())
    return moved


def test_roles_and_factors_learn_at_their_own_rates(language_config: dict[str, Any], tmp_path: Path) -> None:
    """The first step of Adam moves every number by the learning rate, where its gradient is not tiny."""
    steps = (
        "training.max_steps=1",
        "training.eval_steps=1",
        "training.learning_rate=1e-3",
        "training.optim=adamw_torch",
    )
    rates = "adapter.learning_rates={query: 0.5, value: {A: 3, B: 2}, B: 4}"
    result = run(language_config, *steps, rates)
    expected = {"q_proj.A": 0.5e-3, "q_proj.B": 2e-3, "v_proj.A": 3e-3, "v_proj.B": 8e-3}
    assert changes(tmp_path / "run") == pytest.approx(expected, rel=1e-2)
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert logged[0]["learning_rate"] == pytest.approx(1e-3)
    assert result["config"]["adapter"]["learning_rates"]["B"] == 4


def test_weight_decay_pulls_toward_the_start(language_config: dict[str, Any], tmp_path: Path) -> None:
    base = ("training.weight_decay=0", f"output={tmp_path / 'free'}")
    decayed = ("training.weight_decay=5", f"output={tmp_path / 'decayed'}")
    run(language_config, *base)
    run(language_config, *decayed)
    free, pulled = changes(tmp_path / "free"), changes(tmp_path / "decayed")
    assert all(pulled[name] < free[name] for name in free)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter.learning_rates={key: 2}"], "role key is not adapted; adapted: query, value"),
        (["adapter.learning_rates={keys: 2}"], "unknown role 'keys' .did you mean 'key'"),
        (["adapter.learning_rates={query: {C: 2}}"], "unknown factor in adapter.learning_rates 'C'; allowed: A, B"),
        (["adapter.learning_rates={query: 0}"], "adapter.learning_rates is .*; expected multipliers"),
        (["adapter={policy: full, learning_rates: {query: 2}}"], "remove adapter.learning_rates"),
        (["data.prompt='{question}'"], "names the column 'question', which is missing; the columns are mr, ref"),
        (["training.max_length=8"], "truncation to 8 tokens removes the completion"),
        (["training={packing: true, max_length: 8}"], "truncation to 8 tokens removes the completion"),
        (
            [
                "data.prompt=null",
                "data.completion=null",
                "data.text='{ref}'",
                "training.completion_only_loss=true",
                "evaluation=null",
            ],
            "training.completion_only_loss requires data.prompt with data.completion, which are missing",
        ),
        (["evaluation.generate={max_length: 9}"], "max_length also counts the prompt .* got 9; set max_new_tokens"),
        (
            ["evaluation.generate={max_length: 9, max_new_tokens: null}"],
            "max_length also counts the prompt .* got 9; set max_new_tokens",
        ),
        (
            ["evaluation.group_by=name"],
            "evaluation.group_by names the column 'name', which is missing; the columns are mr, ref",
        ),
        (["evaluation.metrics=[blue]"], "unknown evaluation.metrics 'blue' .did you mean 'bleu'"),
        (["evaluation.generate=null"], "evaluation.metrics requires evaluation.generate"),
        (["evaluation.generate={max_tokens: 3}"], "unknown key in evaluation.generate 'max_tokens'"),
        (["evaluation.generate={num_beams: 0}"], "evaluation.generate: .*num_beams"),
        (["data.train=a.csv"], "a.csv: no such file"),
        (["training.pad_to_multiple_of=0"], "training.pad_to_multiple_of: expected 'auto' or .* at least 1, got 0"),
        (["training.chat_template_path=x"], "training.chat_template_path cannot be set: it is set by `data.chat"),
        (["training.loss_tipe=nll"], "unknown key in training 'loss_tipe' .did you mean 'loss_type'"),
        (["training.metric_for_best_model=bleu"], "unknown training.metric_for_best_model 'bleu'; allowed: loss"),
        (["model=builtin:minilm"], "for text generation|has no end-of-text token"),
        (["recipe=causal"], "unknown recipe 'causal' .did you mean 'causal_lm'"),
        (["quantization={load_in_5bit: true}"], "unknown key in quantization 'load_in_5bit'"),
        (["quantization={load_in_4bit: false}"], "quantization requires load_in_4bit: true"),
        (["quantization={torchao: Int9}"], "unknown quantization.torchao 'Int9'"),
        (
            ["adapter={policy: full}", "quantization={load_in_4bit: true}"],
            "quantized weights cannot be fully fine-tuned",
        ),
    ],
)
def test_bad_input_leaves_no_folder(
    language_config: dict[str, Any], tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ailora.AiloraError, match=message):
        run(language_config, *overrides)
    assert not (tmp_path / "run").exists()


def test_a_missing_chat_template_is_named(
    language_config: dict[str, Any], facts: dict[str, str], tmp_path: Path
) -> None:
    messages = [{"role": "user", "content": "{mr}"}, {"role": "assistant", "content": "{ref}"}]
    language_config["data"] = {**facts, "messages": messages}
    with pytest.raises(ailora.InputError, match=r"has no chat template, but data\.messages requires"):
        run(language_config)
    assert not (tmp_path / "run").exists()


def test_answers_end_where_the_chat_template_ends_them(language_config: dict[str, Any], facts: dict[str, str]) -> None:
    """Templates such as Gemma's end answers with a token that is not the end-of-text token, which is never trained."""
    messages = [{"role": "user", "content": "{mr}"}, {"role": "assistant", "content": "{ref}"}]
    language_config["data"] = {**facts, "messages": messages, "chat_template": TURN_TEMPLATE}
    recipe = registry.make_recipe(load_config(language_config))
    assert isinstance(recipe, CausalLMRecipe)
    assert recipe.evaluator.generation is not None
    end = recipe.tokenizer.convert_tokens_to_ids("<system>")
    assert recipe.evaluator.generation.eos_token_id == [recipe.tokenizer.eos_token_id, end]


@pytest.mark.parametrize(
    ("template", "fields", "ends"),
    [
        (TURN_TEMPLATE, {}, ["</s>", "<system>"]),
        (TURN_TEMPLATE, {"eos_token_id": 1}, ["<s>"]),
        (CHAT_TEMPLATE, {}, ["</s>"]),
        (TURN_TEMPLATE.replace("<system>", ""), {}, ["</s>"]),
        ("{{ messages | length }}<system>", {}, ["</s>"]),
        ("{{ raise_exception('only tools') }}", {}, ["</s>"]),
    ],
    ids=["end of turn", "configured", "end of text", "no end", "no answer", "error"],
)
def test_ends_of_completions(template: str, fields: dict[str, Any], ends: list[str]) -> None:
    words = tokenizer()
    words.chat_template = template
    config = build_generation_config(fields, words, chat=True)
    ids = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    assert words.convert_ids_to_tokens(ids) == ends
    assert build_generation_config({}, words).eos_token_id == [words.eos_token_id]


def test_packing_refuses_rows_whose_completions_do_not_fit(language_config: dict[str, Any], tmp_path: Path) -> None:
    """Packing truncates a long row before it joins rows; other strategies split it and lose nothing."""
    rows = [("a", "b"), ("red " * 20, "blue")]
    path = tmp_path / "rows.csv"
    path.write_text("mr,ref\n" + "".join(f"{mr},{ref}\n" for mr, ref in rows))
    language_config["data"] |= {"train": str(path)}
    packing = "training={packing: true, max_length: 16, packing_strategy: %s}"
    with pytest.raises(ailora.InputError, match=r"rows\.csv:3: truncation to 16 tokens removes the completion"):
        registry.make_recipe(load_config(language_config, [packing % "bfd"])).prepare()
    for strategy in ("bfd_split", "wrapped"):
        recipe = registry.make_recipe(load_config(language_config, [packing % strategy]))
        assert max(map(len, recipe.datasets["train"]["input_ids"])) > 16


@pytest.mark.filterwarnings("ignore:`label_smoothing_factor` is deprecated:FutureWarning")
def test_label_smoothing_changes_the_training_only(language_config: dict[str, Any]) -> None:
    """Losses of evaluations are those of the labels, as in the result."""
    language_config |= {"evaluation": {}}
    result = run(language_config, "training.label_smoothing_factor=0.2")
    assert result["history"][-1]["loss"] == pytest.approx(result["metrics"]["validation"]["loss"], abs=0.02)


# --- using a run ---------------------------------------------------------------------------------------------------


def test_a_finished_run_scores_writes_and_predicts(
    language_config: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = run(language_config)
    finished = registry.load_run(tmp_path / "run")
    expected = result["metrics"]["validation"]
    assert finished.evaluate() == pytest.approx(expected, rel=1e-4)
    written = tmp_path / "written.jsonl"
    assert finished.predict(language_config["data"]["validation"], written) == 24
    by_input = {row["mr"]: row["output"] for row in map(json.loads, written.read_text().splitlines())}
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert all(by_input[sample["prompt"].removesuffix(" =>")] == sample["output"] for sample in samples)
    (tmp_path / "alpaca.jsonl").write_text(json.dumps({"mr": "thing[cup]", "ref": "A cup.", "output": "A cup."}))
    with caplog.at_level(logging.WARNING, logger="ailora"):
        finished.predict(str(tmp_path / "alpaca.jsonl"), tmp_path / "alpaca.csv")
    assert "omits the input column 'output'" in caplog.text
    # An integer stays exact beside a missing value, which pandas would turn into a float.
    (tmp_path / "ids.jsonl").write_text('{"mr": "thing[cup]", "id": 9007199254740993}\n{"mr": "thing[car]"}\n')
    for suffix in (".jsonl", ".parquet"):
        finished.predict(str(tmp_path / "ids.jsonl"), tmp_path / f"ids-out{suffix}")
        assert read_tables(str(tmp_path / f"ids-out{suffix}")).column("id") == [9007199254740993, None]
    prompts = [sample["prompt"] for sample in samples]
    for folder in (tmp_path / "run", tmp_path / "run" / "adapter"):
        texts = TextGenerator.load(folder).generate(prompts, {"max_new_tokens": 12})
        assert texts == [sample["output"] for sample in samples]


def test_completion_only_loss_in_a_finished_run_is_ignored(language_config: dict[str, Any]) -> None:
    """Earlier versions trained with it and ignored it without completions."""
    overrides = ["data.prompt=null", "data.completion=null", "data.text='{ref}'", "training.completion_only_loss=true"]
    del language_config["evaluation"]
    with pytest.raises(ailora.InputError, match=r"completion_only_loss requires data\.prompt"):
        load_config(language_config, overrides)
    assert load_config(language_config, overrides, to_run=False).training["completion_only_loss"] is True


def test_what_cannot_write_says_why(language_config: dict[str, Any], tmp_path: Path) -> None:
    del language_config["evaluation"]
    run(language_config, "training.max_steps=1", "training.eval_steps=1")
    with pytest.raises(ailora.InputError, match=r"cannot generate text: its config.yaml has no evaluation\.generate"):
        registry.load_run(tmp_path / "run").predict(language_config["data"]["validation"], tmp_path / "w.csv")
    generator = TextGenerator.load(tmp_path / "run")
    with pytest.raises(ailora.InputError, match="prompt 2 is empty"):
        generator.generate(["a", ""], {})
    with pytest.raises(ailora.InputError, match="has no chat template"):
        generator.generate(["a"], {}, chat=True)
    with pytest.raises(ailora.InputError, match="holds no adapter"):
        TextGenerator.load(tmp_path)


def test_a_finished_run_with_max_length_is_scored_as_before(language_config: dict[str, Any], tmp_path: Path) -> None:
    """Earlier versions accepted max_length, which has no effect beside max_new_tokens."""
    result = run(language_config, "training.max_steps=1", "training.eval_steps=1")
    file = tmp_path / "run" / "config.yaml"
    config = parse_yaml(file.read_text())
    config["evaluation"]["generate"]["max_length"] = 9
    file.write_text(format_yaml(config))
    finished = registry.load_run(tmp_path / "run")
    assert finished.evaluate() == pytest.approx(result["metrics"]["validation"], rel=1e-4)
    assert finished.predict(language_config["data"]["validation"], tmp_path / "written.jsonl") == 24
    with pytest.raises(ailora.InputError, match="max_length also counts the prompt"):
        TextGenerator.load(tmp_path / "run").generate(["a"], {"max_length": 9})


# --- quantized ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "quantization",
    [{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"torchao": "Int8WeightOnlyConfig"}],
    ids=["nf4", "torchao"],
)
def test_a_quantized_base_is_trained(
    language_config: dict[str, Any], tmp_path: Path, quantization: dict[str, Any]
) -> None:
    language_config["quantization"] = quantization
    result = run(language_config)
    losses = [record["loss"] for record in result["history"]]
    assert losses[-1] < losses[0] - 0.1
    assert registry.load_run(tmp_path / "run").evaluate() == pytest.approx(
        result["metrics"]["validation"], rel=1e-3, abs=1e-3
    )
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(language_config["model"]), tmp_path / "run" / "adapter"
    )
    assert isinstance(plain, PeftModel)


def test_a_head_beside_a_quantized_base_is_trained_and_measured_in_one_dtype(
    language_config: dict[str, Any], tmp_path: Path
) -> None:
    language_config["quantization"] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    language_config["training"] |= {"max_steps": 2}
    overrides = ("adapter.modules_to_save=[lm_head]", "evaluation.metrics=[]")
    # The tied head that is trained apart is what is meant here.
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        result = run(language_config, *overrides)
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        measured = registry.load_run(tmp_path / "run").evaluate()
    assert measured["loss"] == pytest.approx(result["metrics"]["validation"]["loss"], rel=1e-3)


# --- kills ----------------------------------------------------------------------------------------------------------


@pytest.mark.ci
@pytest.mark.parametrize(
    "kills",
    [
        # In a step, before a checkpoint is whole, before the samples are: each process goes on where the last one was.
        [("Trainer.training_step", 8), ("RunFolder.mark_complete", 1), ("language_model.write_samples", 1)],
        pytest.param(
            [
                ("Trainer._save_optimizer_and_scheduler", 1),
                ("Trainer.training_step", 7),
                ("Trainer._save_rng_state", 1),
                ("registry.save_model", 1),
                ("registry.write_result", 1),
            ],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["few", "many"],
)
def test_a_killed_run_continues_bit_for_bit(
    language_config: dict[str, Any], tmp_path: Path, kills: list[tuple[str, int]]
) -> None:
    language_config["adapter"]["learning_rates"] = {"query": 0.3, "B": 2.0}
    for name in ("whole", "broken"):
        content = {**copy.deepcopy(language_config), "output": str(tmp_path / name)}
        (tmp_path / f"{name}.yaml").write_text(format_yaml(content))
    assert run_process(tmp_path / "whole.yaml", "", 0) == 0
    for point, count in kills:
        assert run_process(tmp_path / "broken.yaml", point, count) == -signal.SIGKILL, point
        assert not RunFolder(tmp_path / "broken").result.exists()
    assert run_process(tmp_path / "broken.yaml", "", 0) == 0
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_run_on_e2e_writes_the_same_samples(shared: Path, tmp_path: Path) -> None:
    """The real model and data: killed while it trains, while it saves, and while it writes its samples."""
    config = {
        "recipe": "causal_lm",
        "model": str(shared / "lm" / "pico-llama"),
        "adapter": {"policy": "ailora", "rank": 8, "learning_rates": {"query": 0.3}},
        "data": {
            "train": str(shared / "data" / "e2e" / "trainset.csv"),
            "validation": str(shared / "data" / "e2e" / "devset.csv"),
            "prompt": "{mr} =>",
            "completion": " {ref}",
            "max_train_samples": 160,
            "max_validation_samples": 32,
        },
        "evaluation": {"generate": {"max_new_tokens": 24}, "group_by": "mr", "metrics": ["bleu"], "max_samples": 8},
        "training": {"learning_rate": 2e-2, "num_train_epochs": 1, "per_device_train_batch_size": 16, "eval_steps": 4},
    }
    for name in ("whole", "broken"):
        (tmp_path / f"{name}.yaml").write_text(format_yaml({**config, "output": str(tmp_path / name)}))
    assert run_process(tmp_path / "whole.yaml", "", 0) == 0
    for point, count in [
        ("Trainer.training_step", 6),
        ("RunFolder.mark_complete", 2),
        ("language_model.write_samples", 1),
    ]:
        assert run_process(tmp_path / "broken.yaml", point, count) == -signal.SIGKILL, point
    assert run_process(tmp_path / "broken.yaml", "", 0) == 0
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_the_default_where_the_gpu_has_it(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    """Without native units, torch computes in bfloat16 by emulation, which is slow."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    config = CausalLMConfig.model_construct()
    assert config.derived_training["bf16"] is native


@pytest.mark.parametrize(("quantized_with", "moved"), [("torchao", True), ("4bit", False), ("8bit", False)])
def test_a_quantized_model_is_evaluated_on_the_accelerator(
    monkeypatch: pytest.MonkeyPatch, quantized_with: str, moved: bool
) -> None:
    """transformers places models for bitsandbytes there, and leaves those for torchao on the CPU."""

    class Loaded:
        places: ClassVar[list[object]] = []

        def to(self, place: object) -> Loaded:
            self.places.append(place)
            return self

    model = Loaded()
    setattr(model, f"is_loaded_in_{quantized_with}", True)
    monkeypatch.setattr(TrainedRun, "_load", lambda self: model)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    TrainedRun(folder=None, recipe=None).load()  # type: ignore[arg-type]
    assert model.places == [torch.device("cuda")] * moved
