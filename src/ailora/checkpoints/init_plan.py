"""Decide what `init` does, from a configuration and headers alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ailora.checkpoints.module_tasks import ModuleTask
from ailora.checkpoints.output_dir import file_state, validate_finished
from ailora.checkpoints.stored_weight import StoredWeight, find_stored_weights
from ailora.errors import InputError
from ailora.inits import Policy
from ailora.library_versions import library_versions
from ailora.model_loading import load_on_meta, validate_device
from ailora.model_path import model_folder
from ailora.plan.adapter_plan import Form, Plan
from ailora.plan.make_plan import PerModule, make_plan
from ailora.roles import Role
from ailora.safetensors_io import Checkpoint, StoredTensor
from ailora.spectral import flops

#: fp32 copies of the largest matrix that decomposing it takes, and what everything else takes at most.
_MATRIX_COPIES, _MARGIN_BYTES = 6, 128 * 2**20


@dataclass(frozen=True)
class InitPlan:
    """The work of `init`, before a weight is read.

    Attributes:
        model: The model as it was named.
        base: The model on the meta device, of the class that the task type asks for.
        checkpoint: Its tensors, none of them read.
        plan: The settings of every module.
        weights: Where the weight of each planned module lies.
        seed: Seed of what is drawn.
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
        """Plan an adapter for a checkpoint. For its arguments see `init`.

        Raises:
            InputError, ModelError: See `init`.
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
            raise InputError(f"seed {seed!r} is not allowed: a whole number")
        if plan.form is Form.RESIDUAL:
            raise InputError(
                "form 'residual' is not written out of core: choose anchored or stock; ailora.adapt(model, "
                "form='residual') overwrites the float32 weights of a loaded model"
            )
        checkpoint = Checkpoint.open(model_folder(model))
        shapes = {module: group[0].projection.shape for module, group in plan.modules.items()}
        weights = find_stored_weights(base, checkpoint, shapes)
        for weight in weights.values():
            weight.validate_floating()
        return cls(str(model), base, checkpoint, _with_stored_dtypes(plan, weights), weights, seed)

    @property
    def bytes_to_read(self) -> int:
        """Bytes of the planned modules' weights; shared ones count once."""
        return sum({weight.tensor.name: weight.tensor.nbytes for weight in self.weights.values()}.values())

    @property
    def memory_bound(self) -> int:
        """Bytes beyond those of the process at its start that decomposing takes at most, with one worker."""
        return max(_working_bytes(weight.tensor) for weight in self.weights.values()) * _MATRIX_COPIES + _MARGIN_BYTES

    def estimate(self, *, device: str = "cpu") -> dict[str, float]:
        """Estimate modules, bytes, operations, memory and a rough time; nothing is read.

        Raises:
            InputError: No such device.
        """
        validate_device(device)
        tasks = self.tasks(Path(), device=device, cached=False)
        speed = flops.measure_matmul_speed(torch.device(device))
        return {
            "modules": len(tasks),
            "bytes_to_read": self.bytes_to_read,
            "flops": sum(task.flops for task in tasks),
            "memory_bound_bytes": self.memory_bound,
            "file_bytes": self.plan.file_bytes,
            "seconds": sum(task.seconds(speed) for task in tasks),
        }

    def tasks(self, parts: Path, *, device: str, cached: bool) -> list[ModuleTask]:
        """Return the work, module by module, in the order of the plan."""
        bare = replace(self.plan, adapters=())
        return [
            ModuleTask(
                self.weights[module], group, bare, self.seed, device, cached, parts / f"{number:06d}.safetensors"
            )
            for number, (module, group) in enumerate(self.plan.modules.items())
        ]

    @property
    def recorded_name(self) -> str:
        """The name by which loaders find the base model: a folder by its whole path, a hub id as it is."""
        local = self.model.startswith("builtin:") or Path(self.model).expanduser().is_dir()
        return str(model_folder(self.model)) if local else self.model

    @property
    def reads(self) -> list[Path]:
        """The files that are read."""
        folder = self.checkpoint.folder
        return [*(folder / name for name in self.checkpoint.headers), folder / "config.json"]

    @property
    def request(self) -> dict[str, object]:
        """Everything that decides the result, as plain data."""
        return {
            "command": "init",
            "model": self.recorded_name,
            "seed": self.seed,
            "files": {file.name: file_state(file) for file in self.reads},
            "labels": self.base.config.num_labels,
            # Requests of earlier versions hold the key, and what they began or finished is recognised by all keys.
            "plan": {**self.plan.to_dict(), "layer_replication": None},
            "versions": library_versions(),
        }


def _load_base(model: Path | str, task_type: str | None, num_labels: int | None) -> PreTrainedModel:
    if num_labels is not None and (type(num_labels) is not int or num_labels < 1):
        raise InputError(f"num_labels {num_labels!r} is not allowed: a whole number from 1")
    folder = model_folder(model)
    validate_finished(folder)
    base = load_on_meta(str(folder), task_type, num_labels=num_labels)
    if task_type is None and type(base).__name__ not in (base.config.architectures or []):
        raise InputError(
            f"the configuration of {model} names no architecture of transformers, which decides the names in the "
            "file: give the task type (--task-type), such as CAUSAL_LM"
        )
    return base


def _with_stored_dtypes(plan: Plan, weights: Mapping[str, StoredWeight]) -> Plan:
    """Return the plan with the dtypes of the checkpoint, which a model without weights does not know."""
    adapters = []
    for planned in plan.adapters:
        dtype = str(weights[planned.projection.module].tensor.torch_dtype).removeprefix("torch.")
        adapters.append(replace(planned, projection=replace(planned.projection, dtype=dtype)))
    return replace(plan, adapters=tuple(adapters))


def _working_bytes(tensor: StoredTensor) -> int:
    """Return the bytes of the matrix in float32, or float64 where it is that."""
    return tensor.nbytes // tensor.torch_dtype.itemsize * (8 if tensor.dtype == "F64" else 4)
