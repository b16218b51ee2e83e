"""`ailora init`: write the initial adapter for a checkpoint, with a single matrix in memory at a time."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor
from tqdm.auto import tqdm

from ailora.adapter_io.adapter_digests import write_digests
from ailora.adapter_io.lora_weights import PREFIX
from ailora.adapter_io.peft_config_file import CONFIG_NAME, WEIGHTS_NAME
from ailora.atomic_io import write_bytes
from ailora.checkpoints.init_plan import InitPlan
from ailora.checkpoints.module_tasks import ModuleTask, Timing, run_in_turn, run_task
from ailora.checkpoints.modules_to_save import collect_saved_tensors, get_saved_module_names
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
from ailora.lora.lora_config import build_lora_config
from ailora.model_loading import validate_device
from ailora.plan.adapter_metadata import METADATA_NAME, AdapterMetadata
from ailora.plan.adapter_plan import Form
from ailora.plan.make_plan import PerModule
from ailora.roles import Role
from ailora.safetensors_io import Header, StoredTensor, TensorSpec, read_header, read_tensor, write_tensors

#: Files of an adapter, in the order of writing. The configuration comes last, because loaders look for it first.
_FILE_NAMES = (WEIGHTS_NAME, METADATA_NAME, CONFIG_NAME)


@dataclass(frozen=True)
class InitReport:
    """Report of an `init`.

    Attributes:
        folder: Folder of the adapter.
        modules: Number of adapted modules.
        bytes_read: Total size in bytes of the weights read.
        floored: Number of directions with a clamped singular value, by projection.
        seconds: Seconds for `read`, `decompose` and `write`, each summed over all processes, and `total` seconds of
            this process.
        resumed: Number of modules already finished by an interrupted run.
    """

    folder: str
    modules: int
    bytes_read: int
    floored: dict[str, int]
    seconds: dict[str, float]
    resumed: int

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain data."""
        return asdict(self)


def init(
    model: Path | str,
    out: Path | str,
    policy: Policy | str | Mapping[str, object] = "ailora",
    *,
    rank: PerModule = 8,
    alpha: PerModule | None = None,
    roles: Sequence[Role | str] | None = None,
    role_names: Mapping[str, Role | str] | None = None,
    modules: str | None = None,
    form: Form | str = Form.ANCHORED,
    dropout: float = 0.0,
    rslora: bool = False,
    dora: bool = False,
    modules_to_save: Iterable[str] | None = None,
    task_type: str | None = None,
    couple_roles: bool = False,
    num_labels: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    workers: int = 1,
    cached: bool = True,
    force: bool = False,
) -> InitReport:
    """Write the initial adapter of a model to a folder, without loading the model.

    `init` computes the same adapter as `adapt`, but reads only the adapted weights, one matrix at a time. The
    result is a stock PEFT adapter for the unchanged checkpoint, with an update of exactly zero.

    Repeating an interrupted call resumes; repeating a finished call does nothing. Under torchrun or `accelerate
    launch`, the ranks share the work and write to a common `out`.

    Args:
        model: Local folder, hub id with a snapshot in the cache, or `builtin:minilm`.
        out: Folder to write.
        policy: Name of a preset, `{role: init}`, or a `Policy`.
        rank: Rank r, or `{role or regex: rank}`, in which the first matching key applies.
        alpha: Numerator of the scaling, or `{role or regex: alpha}`. None sets alpha = rank, so that the scaling is 1,
            or sqrt(r) with `rslora`.
        roles: Roles to adapt. None means the roles named by the policy, or query and value if the policy names none.
        role_names: `{regex: role}` for modules without a naming rule.
        modules: Regular expression. Only modules whose names contain a match are adapted.
        form: Form of the adapter: `anchored` or `stock`.
        dropout: Dropout probability of the adapter's input, in [0, 1).
        rslora: Whether to scale by alpha / sqrt(r) instead of alpha / r.
        dora: Whether to also train magnitudes (DoRA).
        modules_to_save: Names of modules to fine-tune fully. None means the usual heads of the task type.
        task_type: PEFT's task type. It selects the class of the model, and the class sets the tensor names in the file.
            None selects the class in the configuration.
        couple_roles: Whether every role of a fused weight trains all rows of the weight, not just the role's rows.
        num_labels: Number of outputs of a classification head. None means the number in the configuration.
        seed: Seed for the factors of plain LoRA and for new heads.
        device: Device of the decompositions: `cpu` or `cuda`.
        workers: Number of worker processes. They share the cores.
        cached: Whether to use the cache of decompositions.
        force: Whether to replace existing files in `out`.

    Returns:
        The report, with modules, bytes read and seconds.

    Raises:
        InputError: An argument is out of range, the checkpoint or the device is not available, or `out` cannot be used
            (see `OutputDir.acquire`).
        ModelError: The model has no naming rule; or a weight is missing, quantized, not finite, or of unexpected shape.
    """
    started = time.perf_counter()
    init_plan = InitPlan.from_model(
        model,
        policy,
        rank=rank,
        alpha=alpha,
        roles=roles,
        role_names=role_names,
        modules=modules,
        form=form,
        dropout=dropout,
        rslora=rslora,
        dora=dora,
        modules_to_save=modules_to_save,
        task_type=task_type,
        couple_roles=couple_roles,
        num_labels=num_labels,
        seed=seed,
    )
    report = _execute(init_plan, OutputDir(out), device=device, workers=workers, cached=cached, force=force)
    report.seconds["total"] = time.perf_counter() - started
    return report


def _execute(
    init_plan: InitPlan, output: OutputDir, *, device: str, workers: int, cached: bool, force: bool
) -> InitReport:
    if type(workers) is not int or workers < 1:
        raise InputError(f"workers must be a whole number of at least 1, got {workers!r}")
    validate_device(device)
    acquired = output.acquire(init_plan.request, reads=init_plan.reads, writes=_FILE_NAMES, force=force)
    # Ranks exchange results as files in the common folder. A killed command also resumes from these files.
    with init_process_group_if_launched(), on_main(acquired) as is_finished:
        tasks = init_plan.build_tasks(output.parts, device=device, cached=cached)
        folder, count = str(output.folder), len(tasks)
        if is_finished:
            floored = AdapterMetadata.read(output.folder / METADATA_NAME).floored
            return InitReport(folder, modules=count, bytes_read=0, floored=floored, seconds={}, resumed=count)
        # Ranks divide the list of all tasks. They would disagree on a list of the remaining tasks, because a rank may
        # finish tasks before another rank looks. Dealing tasks out in the order of their cost balances the ranks.
        shard = local_shard(sorted(tasks, key=lambda task: -task.flops))
        remaining = [task for task in shard if not task.is_finished()]
        # An error on any rank ends all ranks. Otherwise, the remaining ranks would wait for missing results.
        with raise_on_all_ranks():
            timings = _run_tasks(remaining, workers=workers)
        floored: dict[str, int] = {}
        with raise_on_all_ranks():
            if is_main():
                floored = _assemble(init_plan, output.folder, tasks)
                output.finish()
        seconds = {part: sum(asdict(timing)[part] for timing in timings) for part in ("read", "decompose", "write")}
        bytes_read = sum(task.weight.tensor.nbytes for task in remaining)
        sums = all_reduce_sum(seconds | {"bytes": bytes_read, "remaining": len(remaining)})
        seconds = {part: sums[part] for part in seconds}
        resumed = count - int(sums["remaining"])
        return InitReport(folder, count, int(sums["bytes"]), floored, seconds, resumed)


def _run_tasks(remaining: list[ModuleTask], *, workers: int) -> list[Timing]:
    """Run tasks in the given order, with a progress bar in floating-point operations."""
    timings: list[Timing] = []
    total = int(sum(task.flops for task in remaining)) or None
    bar = tqdm(total=total, desc="decomposing", unit="flop", unit_scale=True, leave=False, disable=None)
    with bar:
        parallel = workers > 1 and len(remaining) > 1
        finished = run_in_processes(run_task, remaining, workers=workers) if parallel else run_in_turn(remaining)
        for task, timing in finished:
            timings.append(timing)
            bar.set_postfix_str(task.module, refresh=False)
            bar.update(round(task.flops))
    return timings


def _assemble(init_plan: InitPlan, folder: Path, tasks: list[ModuleTask]) -> dict[str, int]:
    """Assemble the adapter from the results of all tasks.

    Returns:
        Number of directions with a clamped singular value, by projection.
    """
    results = {task.module: read_header(task.file) for task in tasks}
    floored: dict[str, int] = {}
    for header in results.values():
        floored |= json.loads(header.metadata["floored"])
    saved_tensors = collect_saved_tensors(init_plan.base, init_plan.plan.options, init_plan.checkpoint, init_plan.seed)
    _write_weights(folder / WEIGHTS_NAME, results, saved_tensors)
    fingerprints = {module: header.metadata["fingerprint"] for module, header in results.items()}
    metadata = AdapterMetadata.from_plan(
        init_plan.plan, fingerprints, floored=floored, base_model=init_plan.recorded_name
    )
    metadata.write(folder)
    config = _config_bytes(init_plan)
    write_digests(folder, pending={CONFIG_NAME: config})
    write_bytes(folder / CONFIG_NAME, config)
    return floored


def _write_weights(
    file: Path, results: Mapping[str, Header], saved_tensors: Mapping[str, StoredTensor | Tensor]
) -> None:
    tensors: dict[str, StoredTensor | Tensor] = {
        f"{module}.{name}": stored for module, header in results.items() for name, stored in header.tensors.items()
    }
    tensors |= saved_tensors
    specs = [TensorSpec.from_tensor(PREFIX + name, tensor) for name, tensor in tensors.items()]
    write_tensors(file, specs, (t if isinstance(t, Tensor) else read_tensor(t) for t in tensors.values()))


def _config_bytes(init_plan: InitPlan) -> bytes:
    config = build_lora_config(init_plan.plan, init_plan.base)
    config.base_model_name_or_path = init_plan.recorded_name
    config.modules_to_save = get_saved_module_names(init_plan.plan.options) or None
    config.inference_mode = True
    # PEFT converts a configuration to JSON only in `save_pretrained`, which writes a file.
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return (Path(folder) / CONFIG_NAME).read_bytes()
