"""Plan a run of `ailora init` from the model's configuration and headers, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ailora.checkpoints.module_tasks import ModuleTask
from ailora.checkpoints.output_dir import validate_finished
from ailora.checkpoints.request import read_file_state
from ailora.checkpoints.stored_weight import StoredWeight, find_stored_weights
from ailora.errors import InputError
from ailora.inits import Policy
from ailora.library_versions import library_versions
from ailora.model_loading import load_on_meta, validate_device
from ailora.model_path import model_folder
from ailora.path_kind import expand_home, is_folder
from ailora.plan.adapter_plan import Form, Plan
from ailora.plan.make_plan import PerModule, make_plan
from ailora.roles import Role
from ailora.safetensors_io import Checkpoint, StoredTensor
from ailora.spectral import flops

#: `ailora init` needs at most this many working copies of the largest matrix, and this many bytes for everything else.
_MATRIX_COPIES, _MARGIN_BYTES = 6, 128 * 2**20


@dataclass(frozen=True)
class InitPlan:
    """The work of `ailora init`, determined before any weight is read.

    Attributes:
        model: Name of the model as given by the user.
        base: Base model on the meta device, in the class selected by the task type.
        checkpoint: Checkpoint of the model.
        plan: Adapter settings of every projection.
        weights: Stored weight of each adapted module.
        seed: Seed for the factors of plain LoRA and for new heads.
    """

    model: str
    base: PreTrainedModel
    checkpoint: Checkpoint
    plan: Plan
    weights: dict[str, StoredWeight]
    seed: int

    @classmethod
    def from_model(
        cls,
        model: Path | str,
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
    ) -> InitPlan:
        """Plan an adapter for a checkpoint. See `init` for the arguments.

        Returns:
            The plan of the run, with a stored weight for every adapted module.

        Raises:
            InputError: An argument is out of range, or the model is not available locally.
            ModelError: The model cannot be adapted, or a weight is missing, is quantized, or does not have the expected
                shape.
        """
        base = _load_base(model, task_type, num_labels)
        plan = make_plan(
            base,
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
        )
        return cls._from_plan(model, base, plan, seed)

    @classmethod
    def _from_plan(cls, model: Path | str, base: PreTrainedModel, plan: Plan, seed: int) -> InitPlan:
        if type(seed) is not int:
            raise InputError(f"seed must be a whole number, got {seed!r}")
        if plan.form is Form.RESIDUAL:
            raise InputError(
                "`ailora init` cannot write the form 'residual': choose 'anchored' or 'stock', or load the model in "
                "float32 and call ailora.adapt(model, form='residual')"
            )
        checkpoint = Checkpoint.open(model_folder(model))
        checkpoint.validate_digests()
        shapes = {module: adapters[0].projection.shape for module, adapters in plan.modules.items()}
        weights = find_stored_weights(base, checkpoint, shapes)
        for weight in weights.values():
            weight.validate_floating()
        return cls(str(model), base, checkpoint, _with_stored_dtypes(plan, weights), weights, seed)

    @property
    def bytes_to_read(self) -> int:
        """Size of the adapted weights in bytes. Shared weights count once."""
        return sum({weight.tensor.name: weight.tensor.nbytes for weight in self.weights.values()}.values())

    @property
    def memory_bound(self) -> int:
        """Upper bound in bytes on the memory of a worker's decompositions, without the memory of the process itself."""
        return max(_working_bytes(weight.tensor) for weight in self.weights.values()) * _MATRIX_COPIES + _MARGIN_BYTES

    def estimate(self, *, device: str = "cpu") -> dict[str, float]:
        """Estimate the cost without reading a weight.

        Args:
            device: Device of the decompositions.

        Returns:
            Number of modules, bytes to read, floating-point operations, memory bound in bytes, size of the adapter file
            in bytes, and seconds.

        Raises:
            InputError: The device is not available.
        """
        validate_device(device)
        # The tasks are not run, so their folder does not matter.
        tasks = self.build_tasks(Path(), device=device, cached=False)
        speed = flops.measure_matmul_speed(torch.device(device))
        return {
            "modules": len(tasks),
            "bytes_to_read": self.bytes_to_read,
            "flops": sum(task.flops for task in tasks),
            "memory_bound_bytes": self.memory_bound,
            "file_bytes": self.plan.file_bytes,
            "seconds": sum(task.estimate_seconds(speed) for task in tasks),
        }

    def build_tasks(self, parts_folder: Path, *, device: str, cached: bool) -> list[ModuleTask]:
        """Build the tasks of all modules, in the order of the plan.

        Args:
            parts_folder: Folder for the results, a file for each module.
            device: Device of the decompositions.
            cached: Whether to use the cache of decompositions.

        Returns:
            The tasks.
        """
        # Tasks are pickled for worker processes, and a task needs only the adapters of its own module.
        plan_without_adapters = replace(self.plan, adapters=())
        return [
            ModuleTask(
                self.weights[module],
                adapters,
                plan_without_adapters,
                self.seed,
                device,
                cached,
                parts_folder / f"{number:06d}.safetensors",
            )
            for number, (module, adapters) in enumerate(self.plan.modules.items())
        ]

    @property
    def recorded_name(self) -> str:
        """Name of the base model for the adapter's configuration: the absolute path of a folder, or the hub id."""
        is_local = self.model.startswith("builtin:") or is_folder(expand_home(self.model))
        return str(model_folder(self.model)) if is_local else self.model

    @property
    def reads(self) -> list[Path]:
        """Input files: shards and configuration."""
        folder = self.checkpoint.folder
        return [*(folder / name for name in self.checkpoint.headers), folder / "config.json"]

    @property
    def request(self) -> dict[str, object]:
        """Inputs of the command, as plain data."""
        return {
            "command": "init",
            "model": self.recorded_name,
            "seed": self.seed,
            "files": {file.name: read_file_state(file) for file in self.reads},
            "labels": self.base.config.num_labels,
            # Requests of earlier versions have this key, and resuming their folders requires equal requests.
            "plan": {**self.plan.to_dict(), "layer_replication": None},
            "versions": library_versions(),
        }


def _load_base(model: Path | str, task_type: str | None, num_labels: int | None) -> PreTrainedModel:
    if num_labels is not None and (type(num_labels) is not int or num_labels < 1):
        raise InputError(f"num_labels must be a whole number of at least 1, got {num_labels!r}")
    folder = model_folder(model)
    validate_finished(folder)
    base = load_on_meta(str(folder), task_type, num_labels=num_labels)
    if task_type is None and type(base).__name__ not in (base.config.architectures or []):
        raise InputError(
            f"the configuration of {model} names no architecture of transformers, but the tensor names in the adapter "
            "file depend on the architecture: give the task type (--task-type), such as CAUSAL_LM"
        )
    return base


def _with_stored_dtypes(plan: Plan, weights: Mapping[str, StoredWeight]) -> Plan:
    """Return a plan with the dtypes of the checkpoint."""
    adapters = []
    # The plan has the default dtype, because it was made from a model on the meta device.
    for planned in plan.adapters:
        dtype = str(weights[planned.projection.module].tensor.torch_dtype).removeprefix("torch.")
        adapters.append(replace(planned, projection=replace(planned.projection, dtype=dtype)))
    return replace(plan, adapters=tuple(adapters))


def _working_bytes(tensor: StoredTensor) -> int:
    """Return the size in bytes of a matrix in float32, or in float64 if stored in float64."""
    return tensor.nbytes // tensor.torch_dtype.itemsize * (8 if tensor.dtype == "F64" else 4)
