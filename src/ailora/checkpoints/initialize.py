"""`ailora init`: an adapter for a checkpoint that is never loaded, one matrix in memory at a time."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from ailora.adapter_io.adapter_checkpoint import PREFIX
from ailora.adapter_io.peft_config_file import CONFIG_NAME, WEIGHTS_NAME
from ailora.atomic_io import write_bytes
from ailora.checkpoints import module_tasks
from ailora.checkpoints.adapter_files import WORDS, write_tensors
from ailora.checkpoints.init_plan import Initialization
from ailora.checkpoints.module_tasks import Job, Timing
from ailora.checkpoints.modules_to_save import head_tensors, saved_modules
from ailora.checkpoints.output_dir import OutputDir
from ailora.distributed import (
    all_reduce_sum,
    init_process_group_if_launched,
    is_main,
    local_shard,
    on_main,
    raise_on_all_ranks,
    run_in_processes,
)
from ailora.errors import InputError
from ailora.inits import Policy
from ailora.lora.lora_config import lora_config
from ailora.model_loading import validate_device
from ailora.plan.adapter_metadata import METADATA_NAME, AdapterMetadata
from ailora.safetensors_io import Header, StoredTensor, TensorSpec, read_header, read_tensor

#: The files of an adapter; loaders look for the last one first.
_WRITTEN = (WEIGHTS_NAME, METADATA_NAME, CONFIG_NAME)


@dataclass(frozen=True)
class InitReport:
    """What `init` made.

    Attributes:
        folder: the adapter's folder.
        modules: how many modules it adapts.
        bytes_read: bytes of the weights that were read.
        floored: by projection, directions that got a size in place of a negligible singular value.
        seconds: by part: `read`, `decompose`, `write` (sums over all processes), and `total` of this one.
        resumed: how many modules an earlier run had finished.
    """

    folder: str
    modules: int
    bytes_read: int
    floored: dict[str, int]
    seconds: dict[str, float]
    resumed: int

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)


def init(
    model: Path | str,
    out: Path | str,
    policy: Policy | str | Mapping[str, Any] = "ailora",
    *,
    task_type: str | None = None,
    num_labels: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    workers: int = 1,
    cached: bool = True,
    force: bool = False,
    **plan_options: Any,
) -> InitReport:
    """Write the adapter that `adapt` would start with, without loading the model.

    Reads the bytes of the adapted weights only, one matrix at a time. The result is a stock PEFT adapter for the
    untouched checkpoint, whose update is exactly zero.

    The same call after a kill goes on where it stopped; after its end it finds that nothing is left to do. Under
    torchrun or `accelerate launch` the ranks share the work in one `out`.

    Args:
        model: as `Initialization.of`.
        out: the folder to write.
        policy: as `make_plan`.
        task_type: as `Initialization.of`.
        num_labels: as `Initialization.of`.
        seed: as `Initialization.of`.
        device: where matrices are decomposed: `cpu`, `cuda`.
        workers: processes that share the cores.
        cached: whether decompositions are looked up and kept in the cache.
        force: replace what `out` holds.
        **plan_options: as `make_plan`.

    Raises:
        InputError, ModelError: as `Initialization.of` and `OutputDir.acquire`, no such device, a weight that has no
            decomposition.
    """
    started = time.perf_counter()
    if type(workers) is not int or workers < 1:
        raise InputError(f"workers {workers!r} is not allowed: a whole number from 1")
    validate_device(device)
    work = Initialization.of(model, policy, task_type=task_type, num_labels=num_labels, seed=seed, **plan_options)
    output = OutputDir(out)
    acquired = output.acquire(work.request, reads=work.reads, writes=_WRITTEN, force=force)
    with init_process_group_if_launched(), on_main(acquired) as done:
        made = work.jobs(output.parts, device=device, cached=cached)
        report = InitReport(str(out), len(made), 0, {}, {}, len(made))
        if done:
            floored = AdapterMetadata.read(output.folder / METADATA_NAME).floored
            return replace(report, floored=floored, seconds={"total": time.perf_counter() - started})
        # Shared before it is looked what is left: other ranks may be at work already.
        mine = local_shard(sorted(made, key=lambda job: -job.flops))
        left = [job for job in mine if not job.finished()]
        with raise_on_all_ranks():
            timings = _run(left, workers=workers)
        with raise_on_all_ranks():
            floored = _write(work, output, made) if is_main() else {}
            if is_main():
                output.finish()
        counted = {"read": 0.0, "decompose": 0.0, "write": 0.0}
        counted = {part: sum(getattr(timing, part) for timing in timings) for part in counted}
        sums = all_reduce_sum(counted | {"bytes": sum(job.stored.size for job in left), "left": len(left)})
        return replace(
            report,
            bytes_read=int(sums["bytes"]),
            floored=floored,
            seconds={part: sums[part] for part in counted} | {"total": time.perf_counter() - started},
            resumed=len(made) - int(sums["left"]),
        )


def _run(left: list[Job], *, workers: int) -> list[Timing]:
    """Make the pieces that are missing, the dearest first, with a bar whose estimate counts operations."""
    timings: list[Timing] = []
    total = int(sum(job.flops for job in left)) or None
    bar = tqdm(total=total, desc="decomposing", unit="flop", unit_scale=True, leave=False, disable=None)
    with bar:
        several = workers > 1 and len(left) > 1
        made = run_in_processes(module_tasks.run, left, workers=workers) if several else module_tasks.run_in_turn(left)
        for job, timing in made:
            timings.append(timing)
            bar.set_postfix_str(job.module, refresh=False)
            bar.update(round(job.flops))
    return timings


def _write(work: Initialization, output: OutputDir, made: list[Job]) -> dict[str, int]:
    """Put the pieces together; the file that a loader looks for first is written last."""
    headers = {job.module: read_header(job.piece) for job in made}
    floored = {name: n for h in headers.values() for name, n in json.loads(h.metadata["floored"]).items()}
    heads = head_tensors(work.base, work.plan.options, work.checkpoint, work.seed)
    _write_weights(output.folder / WEIGHTS_NAME, headers, heads)
    sidecar = AdapterMetadata.from_plan(
        work.plan,
        {module: header.metadata["fingerprint"] for module, header in headers.items()},
        floored=floored,
        base_model=work.recorded_name,
    )
    sidecar.write(output.folder)
    write_bytes(output.folder / CONFIG_NAME, _config(work))
    return floored


def _write_weights(file: Path, pieces: Mapping[str, Header], heads: Mapping[str, StoredTensor | Tensor]) -> None:
    """The stock file, one tensor in memory at a time."""
    parts: dict[str, StoredTensor | Tensor] = {
        f"{module}.{end}": stored for module, piece in pieces.items() for end, stored in piece.tensors.items()
    }
    parts |= heads
    planned = [
        TensorSpec(PREFIX + name, WORDS[part.dtype] if isinstance(part, Tensor) else part.dtype, tuple(part.shape))
        for name, part in parts.items()
    ]

    def made(name: str) -> Tensor:
        part = parts[name.removeprefix(PREFIX)]
        return part if isinstance(part, Tensor) else read_tensor(part)

    write_tensors(file, planned, made)


def _config(work: Initialization) -> bytes:
    config = lora_config(work.plan, work.base)
    config.base_model_name_or_path = work.recorded_name
    config.modules_to_save = saved_modules(work.base, work.plan.options) or None
    config.inference_mode = True
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return (Path(folder) / CONFIG_NAME).read_bytes()
