"""TRL's trainers that compare with a reference model: they add an adapter `ref` beside ours."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from datasets import Dataset
from peft import PeftModel
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RLOOConfig,
    RLOOTrainer,
)

import ailora
from tests.families import FAMILIES, train
from tests.recipes.language import llama_config, tokenizer
from tests.tiers import in_tiers

LLAMA = FAMILIES["llama"]
PAIRS = [{"prompt": "thing[cup] =>", "chosen": " The cup is red.", "rejected": " boat boat"}] * 8
LABELS = [
    {"prompt": "thing[cup] =>", "completion": f" {'red' if i % 2 else 'boat'}", "label": i % 2 == 1} for i in range(8)
]
PROMPTS = [{"prompt": "thing[cup] =>"}] * 8
SAMPLING = {"beta": 0.1, "num_generations": 4, "max_completion_length": 6}
TRAINERS: dict[str, tuple[Any, Any, list[dict[str, Any]], dict[str, Any]]] = {
    "DPO": (DPOTrainer, DPOConfig, PAIRS, {}),
    "DPO, precomputed": (DPOTrainer, DPOConfig, PAIRS, {"precompute_ref_log_probs": True}),
    "KTO": (KTOTrainer, KTOConfig, LABELS, {}),
    "GRPO": (GRPOTrainer, GRPOConfig, PROMPTS, SAMPLING),
    "RLOO": (RLOOTrainer, RLOOConfig, PROMPTS, SAMPLING),
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set"),
]


def base() -> tf.LlamaForCausalLM:
    config = llama_config(tokenizer())
    torch.manual_seed(1)
    return tf.LlamaForCausalLM(config).eval()


def count_red(completions: list[str], **_: object) -> list[float]:
    return [float(len(set(completion))) for completion in completions]


def make_trainer(kind: str, model: PeftModel, folder: Path, **options: Any) -> Any:
    trainer, arguments, rows, own = TRAINERS[kind]
    reward = {"reward_funcs": count_red} if rows is PROMPTS else {}
    return trainer(
        model,
        args=arguments(
            str(folder),
            **{
                "max_steps": 5,
                "per_device_train_batch_size": 4,
                "learning_rate": 1e-2,
                "lr_scheduler_type": "constant",
                "report_to": "none",
                "disable_tqdm": True,
                "use_cpu": True,
                "bf16": False,
                "activation_checkpointing": False,
                "save_strategy": "no",
                "logging_steps": 1,
                **own,
                **options,
            },
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        **reward,
    )


def output(model: PeftModel, adapter: str = "default") -> torch.Tensor:
    model.set_adapter(adapter)
    logits = LLAMA.output(model.eval())
    model.set_adapter("default")
    return logits


@pytest.mark.parametrize("kind", in_tiers(TRAINERS, fast=["DPO"]))
def test_five_steps(kind: str, tmp_path: Path) -> None:
    model = ailora.adapt(base(), rank=4)
    trainer = make_trainer(kind, model, tmp_path)
    trainer.train()
    assert torch.equal(output(model, "ref"), LLAMA.output(base()))
    assert (output(model) - output(model, "ref")).abs().max() > 1e-4
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 5
    assert all(math.isfinite(loss) for loss in losses)
    if kind == "DPO":
        assert losses[0] == pytest.approx(0.6931472, abs=1e-6)
        assert losses[-1] < losses[0]


def test_a_trained_adapter_is_its_own_reference(tmp_path: Path) -> None:
    model = ailora.adapt(base(), rank=4)
    train(model, LLAMA, steps=3, rate=1e-2)
    before = output(model)
    trainer = make_trainer("DPO", model, tmp_path)
    assert torch.equal(output(model, "ref"), before)
    trainer.train()
    assert torch.equal(output(model, "ref"), before)
    trainer.save_model(str(tmp_path / "saved"))
    stock = PeftModel.from_pretrained(base(), tmp_path / "saved")
    stock.load_adapter(tmp_path / "saved" / "ref", "ref")
    assert torch.equal(output(stock), output(model))
    assert torch.equal(output(stock, "ref"), before)


@pytest.mark.ci
def test_training_resumes_from_a_checkpoint(tmp_path: Path) -> None:
    whole = ailora.adapt(base(), rank=4)
    make_trainer("DPO", whole, tmp_path, save_strategy="steps", save_steps=2).train()
    resumed = ailora.adapt(base(), rank=4)
    make_trainer("DPO", resumed, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for adapter in ("default", "ref"):
        assert torch.equal(output(resumed, adapter), output(whole, adapter))
