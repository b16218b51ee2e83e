"""What two processes that torchrun started find out about adapted models; one line for each check that passed.

Two processes take as long to start as all that they do here, so that jobs of `tests.engines.training` can follow.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import transformers as tf
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import ailora
from ailora.distributed import all_reduce_sum, on_main, raise_on_all_ranks
from ailora.lora.packed_factor import PackedFactor
from ailora.plan.adapter_metadata import AdapterMetadata
from tests.engines.training import Job, base, examples, train

OPTIONS = {"rank": 4, "task_type": "CAUSAL_LM"}
IDS = torch.stack([example["input_ids"] for example in examples()[:4]])
CHECKS: list[Callable[[Path], None]] = []


def check(function: Callable[[Path], None]) -> Callable[[Path], None]:
    CHECKS.append(function)
    return function


def fused_base() -> nn.Module:
    """A Phi-3, whose query, key and value lie in one weight."""
    config = tf.Phi3Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    torch.manual_seed(3)
    return tf.Phi3ForCausalLM(config).eval()


def sharded(model: nn.Module) -> nn.Module:
    """The model with FSDP2 around each layer and the whole."""
    for module in list(model.modules()):
        if type(module).__name__.endswith("DecoderLayer"):
            fully_shard(module)
    return fully_shard(model)


def step(model: nn.Module, ids: Tensor = IDS, optimizer: torch.optim.Optimizer | None = None) -> torch.optim.Optimizer:
    """One step of Adam."""
    optimizer = optimizer or torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def mine() -> Tensor:
    """This process's half of the batch."""
    return IDS.chunk(2)[dist.get_rank()]


def parts(model: nn.Module) -> dict[str, Tensor]:
    """The anchors and differences of a model, gathered."""
    named = [*model.named_parameters(), *model.named_buffers()]
    found = {n: t.detach() for n, t in named if n.endswith((".anchor", ".delta", ".value"))}
    assert found
    return {n: (t.full_tensor() if isinstance(t, DTensor) else t).clone() for n, t in found.items()}


def validate_close(these: dict[str, Tensor], those: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert these.keys() == those.keys()
    for name, tensor in these.items():
        assert (tensor - those[name]).norm() <= tolerance * those[name].norm(), name


def same_everywhere(tensors: dict[str, Tensor]) -> bool:
    """Whether all processes have the same bits."""
    everyone: list[object] = [None, None]
    dist.all_gather_object(everyone, {name: tensor.tolist() for name, tensor in tensors.items()})
    return everyone[0] == everyone[1]


def disturbed(model: nn.Module) -> nn.Module:
    """The model with other weights on each process."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + dist.get_rank())
    return model


def fill(model: nn.Module, value: float) -> nn.Module:
    """The model with a query weight that has this value everywhere."""
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.fill_(value)
    return model


@check
def a_failure_of_one_process_is_known_to_all(folder: Path) -> None:
    @contextmanager
    def claimed(error: Exception | None) -> Iterator[str]:
        (folder / f"claimed{dist.get_rank()}").touch()
        if error is not None:
            raise error
        yield "mine"

    with on_main(claimed(None)) as value:
        assert value == "mine"
    assert not (folder / "claimed1").exists()
    with pytest.raises(ailora.AiloraError, match="taken"), on_main(claimed(ailora.InputError("taken"))):
        pass

    def fail_on_second() -> None:
        if dist.get_rank() == 1:
            raise ailora.InputError("ended")

    message = "ended" if dist.get_rank() == 1 else "rank 1 failed: InputError: ended"
    with pytest.raises(ailora.AiloraError, match=message), raise_on_all_ranks():
        fail_on_second()
    assert all_reduce_sum({"rank": dist.get_rank() + 1.0}) == {"rank": 3.0}


@check
def the_first_process_gives_all_their_start(folder: Path) -> None:
    for policy in ("ailora", "lora"):
        torch.manual_seed(dist.get_rank())
        model = ailora.adapt(disturbed(base()), policy, **OPTIONS)
        assert same_everywhere({n: t for n, t in get_peft_model_state_dict(model).items() if "lora_" in n})
        sidecar: list[object] = [None, None]
        dist.all_gather_object(sidecar, ailora.lora.inject.get_metadata(model).fingerprints)
        assert sidecar[0] == sidecar[1]


@check
def only_the_first_process_must_have_read_the_weights(folder: Path) -> None:
    model = base()
    if dist.get_rank() > 0:
        with torch.no_grad():
            model.model.layers[0].self_attn.q_proj.weight.fill_(float("nan"))
    adapted = ailora.adapt(copy.deepcopy(model), **OPTIONS)
    assert same_everywhere(parts(adapted))
    if dist.get_rank() == 0:
        ailora.save_adapter(adapted, folder / "first")
    dist.barrier()
    resumed = ailora.resume(model, folder / "first")
    validate_close(parts(resumed), parts(adapted))
    assert isinstance(ailora.adapt(resumed, adapter_name="second", **OPTIONS), PeftModel)
    model = base()
    if dist.get_rank() == 0:
        with torch.no_grad():
            model.model.layers[0].self_attn.q_proj.weight.fill_(float("nan"))
    with pytest.raises(ailora.ModelError, match="NaN or infinite"):
        ailora.adapt(model, **OPTIONS)
    assert type(model.model.layers[0].self_attn.q_proj) is nn.Linear


@check
def a_single_process_may_resume(folder: Path) -> None:
    adapted = ailora.adapt(base(), **OPTIONS)
    if dist.get_rank() == 0:
        ailora.save_adapter(adapted, folder / "single")
    dist.barrier()
    # The source of a broadcast by gloo may return before the others receive, so the other process resumes first.
    for rank in (1, 0):
        if dist.get_rank() == rank:
            validate_close(parts(ailora.resume(base(), folder / "single")), parts(adapted))
        dist.barrier()
    if dist.get_rank() == 0:
        with pytest.raises(ailora.ModelError, match="differs from the adapter's base"):
            ailora.resume(fill(base(), 0.5), folder / "single")


@check
def ddp_gives_all_the_anchors_of_the_first_process(folder: Path) -> None:
    model = ailora.adapt(base(), **OPTIONS)
    with torch.no_grad():
        for name, tensor in model.named_buffers():
            if name.endswith("anchor"):
                tensor.mul_(1 + 1e-3 * dist.get_rank())
    assert not same_everywhere(parts(model))
    wrapped = DistributedDataParallel(model, forward_sync_buffers=False)
    assert same_everywhere(parts(model))
    reference = ailora.adapt(base(), **OPTIONS)
    optimizers = None, None
    for _ in range(3):
        optimizers = step(wrapped, mine(), optimizers[0]), step(reference, IDS, optimizers[1])
    validate_close(parts(model), parts(reference), 1e-5)


@check
def every_process_of_ddp_may_save(folder: Path) -> None:
    model = ailora.adapt(base(), **OPTIONS)
    step(DistributedDataParallel(model, forward_sync_buffers=False), mine())
    write = AdapterMetadata.write

    def write_slowly(self: AdapterMetadata, folder: Path) -> None:
        time.sleep(1)
        write(self, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdapterMetadata, "write", write_slowly)
        dist.barrier()
        ailora.save_adapter(model, folder / "ddp")
    dist.barrier()
    assert not [file for file in (folder / "ddp").iterdir() if file.name.startswith(".")]
    validate_close(parts(ailora.resume(base(), folder / "ddp")), parts(model))


@check
def fsdp_trains_as_one_process(folder: Path) -> None:
    for make in (base, fused_base):
        for policy in ("ailora", {"query": "principal", "value": "lora"}):
            model = sharded(ailora.adapt(make(), policy, **OPTIONS))
            reference = ailora.adapt(make(), policy, **OPTIONS)
            optimizers = None, None
            for _ in range(3):
                optimizers = step(model, mine(), optimizers[0]), step(reference, IDS, optimizers[1])
            assert any(isinstance(parameter, DTensor) for parameter in model.parameters())
            validate_close(parts(model), parts(reference), 1e-4)


@check
def fsdp_states_come_back(folder: Path) -> None:
    full = StateDictOptions(full_state_dict=True, cpu_offload=True)
    received = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, cpu_offload=True, strict=False)
    for make in (base, fused_base):
        model = sharded(ailora.adapt(make(), **OPTIONS))
        step(model, mine())
        trained = parts(model)
        shards, whole = copy.deepcopy(get_model_state_dict(model)), get_model_state_dict(model, options=full)
        adapter = {key: value.clone() for key, value in get_peft_model_state_dict(model).items()}
        step(model, mine())
        for load in (
            lambda model=model, shards=shards: set_model_state_dict(model, shards),
            lambda model=model, whole=whole: set_model_state_dict(model, dict(whole), options=received),
            lambda model=model, adapter=adapter: set_peft_model_state_dict(model, dict(adapter)),
        ):
            step(model, mine())
            load()
            validate_close(parts(model), trained)
            assert all(t.is_contiguous() for t in (*model.parameters(), *model.buffers()))
        step(model, mine())


@check
def fsdp_refuses_the_file_of_another_start(folder: Path) -> None:
    other = get_peft_model_state_dict(ailora.adapt(base(), "reversed", **OPTIONS))
    model = sharded(ailora.adapt(base(), **OPTIONS))
    before = parts(model)
    with pytest.raises(ailora.AnchorMismatchError, match="anchor in the file differs"):
        set_peft_model_state_dict(model, other)
    validate_close(parts(model), before)


@check
def fsdp_saves_every_form_as_the_stock_file(folder: Path) -> None:
    for make in (base, fused_base):
        for number, options in enumerate(
            ({}, {"form": "stock"}, {"form": "residual"}, {"modules_to_save": ["lm_head"]}, {"dora": True})
        ):
            model = sharded(ailora.adapt(make(), **OPTIONS, **options))
            step(model, mine())
            with torch.no_grad():
                expected = model(input_ids=IDS).logits
            target = ailora.save_adapter(model, folder / f"{make.__name__}-{number}")
            loaded = PeftModel.from_pretrained(make(), target).eval()
            assert not any(isinstance(module, PackedFactor) for module in loaded.modules())
            with torch.no_grad():
                assert (loaded(input_ids=IDS).logits - expected).abs().max() <= 1e-4 * expected.abs().max()


@check
def weights_that_fsdp_has_sharded_are_gathered(folder: Path) -> None:
    model = ailora.adapt(sharded(base()), **OPTIONS)
    validate_close(parts(model), parts(ailora.adapt(base(), **OPTIONS)))
    with torch.no_grad():
        expected = base()(input_ids=IDS).logits
        assert (model(input_ids=IDS).logits - expected).abs().max() <= 1e-5
    with pytest.raises(ailora.ModelError, match=r"q_proj: the weight is sharded over processes.*form='anchored'"):
        ailora.adapt(sharded(base()), form="residual", **OPTIONS)


@check
def tensor_parallel_weights_take_the_stock_form(folder: Path) -> None:
    if dist.get_rank() == 0:
        base().save_pretrained(folder / "base")
    dist.barrier()
    split = tf.LlamaForCausalLM.from_pretrained(
        folder / "base", distributed_config=tf.distributed.DistributedConfig(tp_size=2, tp_plan="auto")
    ).eval()
    assert isinstance(split.model.layers[0].self_attn.q_proj.weight, DTensor)
    with pytest.raises(ailora.ModelError, match=r"q_proj: the weight is split by tensor parallelism.*form='stock'"):
        ailora.adapt(split, **OPTIONS)
    model = ailora.adapt(split, form="stock", **OPTIONS)
    reference = ailora.adapt(base(), form="stock", **OPTIONS)
    step(model)
    step(reference)
    loaded = PeftModel.from_pretrained(base(), ailora.save_adapter(model, folder / "tp")).eval()
    with torch.no_grad():
        expected = reference(input_ids=IDS).logits
        for other in (model, loaded):
            assert (other(input_ids=IDS).logits - expected).abs().max() <= 1e-4 * expected.abs().max()


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    dist.init_process_group("gloo")
    for run in CHECKS:
        run(Path(wanted["folder"]))
        dist.barrier()
        if dist.get_rank() == 0:
            print(f"passed: {run.__name__}", flush=True)
    for options in wanted["jobs"]:
        train(Job(**options))
    dist.destroy_process_group()
