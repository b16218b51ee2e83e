"""`ailora init`: an adapter for a checkpoint that is never loaded, one matrix in memory at a time."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ailora.adapters.filed import CONFIG_NAME, PREFIX, WEIGHTS_NAME
from ailora.adapters.lora_config import lora_config
from ailora.adapters.plan import Form, Plan
from ailora.adapters.planning import make_plan
from ailora.adapters.sidecar import SIDECAR_NAME, Sidecar, library_versions
from ailora.adapters.tensor_names import stored_weights
from ailora.adapters.weights import base_layer, stored_transposed
from ailora.checkpoints import jobs
from ailora.checkpoints.adapter_files import WORDS, write_tensors
from ailora.checkpoints.heads import head_tensors
from ailora.checkpoints.jobs import Job, Timing
from ailora.checkpoints.models import meta_model, model_folder
from ailora.checkpoints.output import Output
from ailora.checkpoints.rewrite import copy_companions, rewrite
from ailora.checkpoints.team import Team, joined, run_in_processes
from ailora.errors import InputError
from ailora.inits import Policy
from ailora.shards import Checkpoint, Header, Planned, StoredTensor, read_header, read_tensor, write_bytes
from ailora.spectral import cost

#: fp32 copies of the largest matrix that decomposing it takes, and what everything else takes at most.
_COPIES, _MARGIN = 6, 128 * 2**20


@dataclass(frozen=True)
class Initialization:
    """What `init` is going to do, decided from the configuration and the headers alone.

    Attributes:
        model: as it was named.
        base: the model on the meta device, of the class that the task type asks for.
        checkpoint: its tensors, none of them read.
        plan: what every module gets.
        stored: the tensor of each planned module.
        seed: of the random starts.
    """

    model: str
    base: PreTrainedModel
    checkpoint: Checkpoint
    plan: Plan
    stored: dict[str, StoredTensor]
    seed: int

    @classmethod
    def of(
        cls,
        model: str,
        policy: Policy | str | Mapping[str, Any] = "ailora",
        *,
        task_type: str | None = None,
        num_labels: int | None = None,
        seed: int = 0,
        **plan_options: Any,
    ) -> Initialization:
        """Plan an adapter for a checkpoint.

        Args:
            model: a local folder, a hub id whose snapshot is in the cache, or `builtin:minilm`.
            policy: as `make_plan`.
            task_type: PEFT's, which decides the class that the adapter will be loaded into, and so the names in its
                file; None: the class that the configuration names.
            num_labels: outputs of a classification head; None: as the configuration says.
            seed: of the random starts of plain LoRA and of new heads.
            **plan_options: as `make_plan`, `layer_replication` aside.

        Raises:
            InputError, ModelError: as `make_plan`, `Checkpoint.open` and `meta_model`; a planned module's weight is not
                in the checkpoint as it is.
        """
        if plan_options.get("layer_replication") is not None:
            raise InputError("layer_replication changes the model in memory: use ailora.adapt on the loaded model")
        if type(seed) is not int:
            raise InputError(f"seed {seed!r} is not allowed: a whole number")
        base = meta_model(model, task_type, num_labels=num_labels)
        plan = make_plan(base, policy, task_type=task_type, **plan_options)
        checkpoint = Checkpoint.open(model_folder(model))
        names = stored_weights(base, plan.modules, checkpoint.tensors)
        stored = {module: checkpoint.tensors[name] for module, name in names.items()}
        for module, tensor in stored.items():
            _require_fit(tensor, base_layer(base, module), plan.modules[module][0].projection.shape)
        return cls(model, base, checkpoint, _with_stored_dtypes(plan, stored), stored, seed)

    @property
    def bytes_to_read(self) -> int:
        """Bytes of the planned modules' weights."""
        return sum(tensor.size for tensor in {tensor.name: tensor for tensor in self.stored.values()}.values())

    @property
    def memory_bound(self) -> int:
        """Bytes beyond those of the process at its start that decomposing takes at most, with one worker."""
        return max(4 * _COPIES * _entries(tensor) for tensor in self.stored.values()) + _MARGIN

    def estimate(self, *, device: str = "cpu") -> dict[str, float]:
        """Modules, bytes, operations, memory and a rough time, as plain data; nothing is read."""
        made = self.jobs(Path(), device=device, cached=False)
        speed = cost.matmul_speed(torch.device(device))
        return {
            "modules": len(made),
            "bytes_to_read": self.bytes_to_read,
            "flops": sum(job.flops for job in made),
            "memory_bound_bytes": self.memory_bound,
            "file_bytes": self.plan.file_bytes,
            "seconds": sum(job.seconds(speed) for job in made),
        }

    def jobs(self, pieces: Path, *, device: str, cached: bool) -> list[Job]:
        """The work, module by module, in the order of the plan."""
        bare = replace(self.plan, adapters=())
        return [
            Job(number, self.stored[module], self.transposed(module), group, bare, self.seed, device, cached, pieces)
            for number, (module, group) in enumerate(self.plan.modules.items())
        ]

    def transposed(self, module: str) -> bool:
        """Whether the weight of a module is stored as (in, out)."""
        return stored_transposed(base_layer(self.base, module))

    @property
    def request(self) -> dict[str, Any]:
        """What decides the result, as plain data."""
        files = {tensor.file for tensor in self.checkpoint.tensors.values()}
        stats = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(files)}
        named = {"command": "init", "model": _recorded_name(self.model), "seed": self.seed, "files": stats}
        named["labels"] = self.base.config.num_labels
        return named | {"plan": self.plan.to_json(), "versions": library_versions()}


@dataclass(frozen=True)
class InitReport:
    """What `init` made.

    Attributes:
        folder: the adapter's folder.
        modules: how many modules it adapts.
        bytes_read: bytes of the weights that were read.
        floored: by projection, directions that got a size in place of a negligible singular value.
        seconds: by part: `read`, `decompose`, `write` (over all processes), and `total` of this one.
        resumed: how many modules an earlier run had finished.
    """

    folder: str
    modules: int
    bytes_read: int
    floored: dict[str, int]
    seconds: dict[str, float]
    resumed: int

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)


def init(
    model: str,
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

    Reads the bytes of the adapted weights only, one matrix at a time. In the anchored and the stock form the result is
    a stock PEFT adapter for the untouched checkpoint, whose update is exactly zero. In the residual form, `out` becomes
    a checkpoint of the residual weights, with the adapter for it in `out/adapter`.

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
        InputError, ModelError: as `Initialization.of` and `Output.claimed`, no such device, a weight that has no
            decomposition.
    """
    started = time.perf_counter()
    if type(workers) is not int or workers < 1:
        raise InputError(f"workers {workers!r} is not allowed: a whole number from 1")
    _require_device(device)
    work = Initialization.of(model, policy, task_type=task_type, num_labels=num_labels, seed=seed, **plan_options)
    output = Output(out)
    with joined() as team, _claimed(output, work, team, force=force) as done:
        made = work.jobs(output.pieces, device=device, cached=cached)
        report = InitReport(str(out), len(made), 0, {}, {}, len(made))
        if done:
            floored = Sidecar.read(_adapter_folder(work, output) / SIDECAR_NAME).floored
            return replace(report, floored=floored, seconds={"total": time.perf_counter() - started})
        # Shared before it is looked what is left: other ranks may be at work already.
        left = [job for job in team.share(sorted(made, key=lambda job: -job.flops)) if not job.piece.exists()]
        timings = _run(left, workers=workers)
        team.wait()
        if team.leads:
            floored = _write(work, output, made)
            output.finish()
            report = replace(report, floored=floored)
        team.wait()
        parts = ("read", "decompose", "write")
        seconds: dict[str, float] = {part: sum(getattr(t, part) for t in timings) for part in parts}
        read = sum(job.stored.size for job in left)
        seconds["total"] = time.perf_counter() - started
        return replace(report, bytes_read=read, seconds=seconds, resumed=len(made) - len(left))


@contextmanager
def _claimed(output: Output, work: Initialization, team: Team, *, force: bool) -> Iterator[bool]:
    """The leading rank claims the folder; the others work in it as long as it does."""
    if team.leads:
        with output.claimed(work.request, sources=[work.checkpoint.folder], force=force) as done:
            team.wait()
            yield done
    else:
        team.wait()
        yield not output.pieces.exists()


def _run(left: list[Job], *, workers: int) -> list[Timing]:
    """Make the pieces that are missing, the dearest first, with a bar whose estimate counts operations."""
    timings: list[Timing] = []
    total = int(sum(job.flops for job in left)) or None
    bar = tqdm(total=total, desc="decomposing", unit="flop", unit_scale=True, leave=False, disable=None)
    with bar:
        several = workers > 1 and len(left) > 1
        made = run_in_processes(jobs.run, left, workers=workers) if several else jobs.run_in_turn(left)
        for job, timing in made:
            timings.append(timing)
            bar.set_postfix_str(job.module, refresh=False)
            bar.update(round(job.flops))
    return timings


def _write(work: Initialization, output: Output, made: list[Job]) -> dict[str, int]:
    """Put the pieces together; the file that a loader looks for first is written last."""
    headers = {job.module: read_header(job.piece) for job in made}
    floored = {name: n for h in headers.values() for name, n in json.loads(h.metadata["floored"]).items()}
    residual = work.plan.form is Form.RESIDUAL
    adapter = _adapter_folder(work, output)
    adapter.mkdir(exist_ok=True)
    heads = head_tensors(work.base, work.plan.options, work.checkpoint, work.seed)
    _write_weights(adapter / WEIGHTS_NAME, headers, heads)
    recorded = str(output.folder.resolve()) if residual else _recorded_name(work.model)
    sidecar = Sidecar.of(
        work.plan,
        {module: header.metadata["fingerprint"] for module, header in headers.items()},
        floored=floored,
        base_model=_recorded_name(work.model),
    )
    sidecar.write(adapter)
    write_bytes(adapter / CONFIG_NAME, _config(work, recorded))
    if residual:
        by_tensor = {job.stored.name: job for job in made}
        copy_companions(work.checkpoint.folder, output)
        changes = {name: _residual_of(job) for name, job in by_tensor.items()}
        rewrite(work.checkpoint, output, changes)
    return floored


def _adapter_folder(work: Initialization, output: Output) -> Path:
    return output.folder / "adapter" if work.plan.form is Form.RESIDUAL else output.folder


def _residual_of(job: Job) -> Any:
    return lambda raw: iter([jobs.residual_rows(job, raw)])


def _write_weights(file: Path, pieces: Mapping[str, Header], heads: Mapping[str, StoredTensor | Tensor]) -> None:
    """The stock file, one tensor in memory at a time."""
    parts: dict[str, StoredTensor | Tensor] = {
        f"{module}.{end}": stored for module, piece in pieces.items() for end, stored in piece.tensors.items()
    }
    parts |= heads
    planned = [
        Planned(PREFIX + name, WORDS[part.dtype] if isinstance(part, Tensor) else part.dtype, tuple(part.shape))
        for name, part in parts.items()
    ]

    def made(name: str) -> Tensor:
        part = parts[name.removeprefix(PREFIX)]
        return part if isinstance(part, Tensor) else read_tensor(part)

    write_tensors(file, planned, made)


def _config(work: Initialization, base: str) -> bytes:
    config = lora_config(work.plan, work.base, of_file=work.plan.form is not Form.RESIDUAL)
    config.base_model_name_or_path = base
    config.inference_mode = True
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return (Path(folder) / CONFIG_NAME).read_bytes()


def _recorded_name(model: str) -> str:
    """What loaders find the base model by: a folder by its whole path, a hub id as it is."""
    folder = model_folder(model)
    return str(folder) if model.startswith("builtin:") or Path(model).expanduser().is_dir() else model


def _require_fit(tensor: StoredTensor, layer: nn.Module, shape: tuple[int, int]) -> None:
    expected = shape[::-1] if stored_transposed(layer) else shape
    if tensor.shape != expected:
        raise InputError(f"{tensor}: the configuration says {expected}; is the checkpoint quantized or damaged?")


def _with_stored_dtypes(plan: Plan, stored: Mapping[str, StoredTensor]) -> Plan:
    """The plan with the dtypes of the checkpoint, which a model without weights does not know."""
    adapters = []
    for planned in plan.adapters:
        dtype = str(stored[planned.projection.module].torch_dtype).removeprefix("torch.")
        adapters.append(replace(planned, projection=replace(planned.projection, dtype=dtype)))
    return replace(plan, adapters=tuple(adapters))


def _entries(tensor: StoredTensor) -> int:
    return tensor.size // tensor.torch_dtype.itemsize


def _require_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} is not here: {error}") from None
