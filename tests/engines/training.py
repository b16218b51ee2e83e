"""Train a tiny adapted Llama with a stock Trainer, alone or as one of the processes that torchrun started.

python -m tests.engines.training '[{"out": "/tmp/run", "engine": "fsdp"}]'
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers as tf
from accelerate import DistributedType
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import ailora
from ailora.lora import AnchoredFactor

STEPS, SAVED_AT, KILLED_AT, BATCH = 50, 25, 28, 4


@dataclass
class Job:
    """What a run does; the same numbers are trained whatever the engine.

    Attributes:
        out: Folder of the checkpoints, and of the adapter in `out/adapter`.
        engine: Alone, ddp or fsdp.
        killed: Whether all processes are killed a little after the checkpoint.
        resumed: Whether the run goes on from the checkpoint.
        fsdp: Entries of `fsdp_config`.
        adapter: Options of `ailora.adapt`.
        training: Entries of the TrainingArguments.
        trainer: A class of transformers, or `SFTTrainer`.
    """

    out: str
    engine: str = "alone"
    killed: bool = False
    resumed: bool = False
    fsdp: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    trainer: str = "Trainer"


class _KillSelf(tf.TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)


def base() -> nn.Module:
    """The base model, in eval mode."""
    config = tf.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        tie_word_embeddings=False,
    )
    torch.manual_seed(3)
    model = tf.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)
    return model


def examples() -> list[dict[str, torch.Tensor]]:
    """Sequences of one length, so that every process has as many tokens."""
    ids = torch.randint(5, 64, (40, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in ids]


def arguments(job: Job, cls: type[tf.TrainingArguments] = tf.TrainingArguments) -> tf.TrainingArguments:
    """Arguments with one global batch size for any number of processes."""
    fsdp = {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
        **job.fsdp,
    }
    options: dict[str, Any] = {"fsdp": True, "fsdp_config": fsdp} if job.engine == "fsdp" else {}
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    args = cls(
        **{
            "output_dir": job.out,
            "use_cpu": True,
            "max_steps": STEPS,
            "per_device_train_batch_size": BATCH // processes,
            "learning_rate": 1e-2,
            "weight_decay": 0.01,
            "max_grad_norm": 0.5,
            "save_steps": SAVED_AT,
            "logging_steps": 10,
            "report_to": [],
            "disable_tqdm": True,
            "ddp_broadcast_buffers": False,
            "ddp_find_unused_parameters": False,
            **options,
            **job.training,
        }
    )
    if job.engine == "fsdp":
        # accelerate takes FSDP for granted only with an accelerator, and falls back to DDP on CPUs, in silence.
        args.distributed_state.distributed_type = DistributedType.MULTI_GPU
    return args


def trainer_for(job: Job) -> tf.Trainer:
    """A stock trainer of the adapted model."""
    model = base()
    if job.trainer == "SFTTrainer":
        import trl

        args = arguments(job, trl.SFTConfig)
        return trl.SFTTrainer(
            model=adapted(model, job), args=args, train_dataset=_sft_data(), processing_class=_words()
        )
    args = arguments(job)
    return tf.Trainer(model=adapted(model, job), args=args, train_dataset=examples())


def adapted(model: nn.Module, job: Job) -> PeftModel:
    return ailora.adapt(model, **{"rank": 4, "task_type": "CAUSAL_LM", **job.adapter})


def _sft_data() -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"input_ids": row["input_ids"].tolist()} for row in examples()])


def _words() -> tf.PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {f"w{number}": number for number in range(64)}
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), pad_token="w1", eos_token="w2"
    )


def validate_sharded(model: nn.Module) -> None:
    """The differences are DTensors, the anchors plain, and the layers FSDP2's."""
    factors = [module for module in model.modules() if isinstance(module, AnchoredFactor)]
    assert factors
    for factor in factors:
        assert isinstance(factor.delta, DTensor)
        assert not isinstance(factor.anchor, DTensor)
    layers = [module for module in model.modules() if type(module).__name__.endswith("LlamaDecoderLayer")]
    assert len(layers) == 2
    assert all(isinstance(layer, FSDPModule) for layer in layers)


def train(job: Job) -> None:
    """Train, save, and be killed if the job says so."""
    trainer = trainer_for(job)
    if job.killed:
        trainer.add_callback(_KillSelf())
    trainer.train(resume_from_checkpoint=f"{job.out}/checkpoint-{SAVED_AT}" if job.resumed else None)
    if job.engine == "fsdp":
        validate_sharded(trainer.model)
    if job.engine == "fsdp" or trainer.is_world_process_zero():
        ailora.save_adapter(trainer.model, f"{job.out}/adapter")
    Path(job.out, f"log{trainer.args.process_index}.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    for options in json.loads(sys.argv[1]):
        train(Job(**options))
    if dist.is_initialized():
        dist.destroy_process_group()
