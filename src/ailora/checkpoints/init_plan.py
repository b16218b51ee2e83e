"""What `init` is going to do, decided from a configuration and headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ailora.checkpoints.module_tasks import Job
from ailora.checkpoints.output_dir import file_state
from ailora.errors import InputError, ModelError
from ailora.inits import Policy
from ailora.model_loading import load_on_meta, model_folder, validate_device
from ailora.plan.adapter_metadata import library_versions
from ailora.plan.adapter_plan import Form, Plan
from ailora.plan.make_plan import make_plan
from ailora.safetensors_io import Checkpoint, StoredTensor
from ailora.spectral import flops
from ailora.weights.base_weight import base_layer, is_stored_transposed
from ailora.weights.checkpoint_keys import match_checkpoint_keys

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
        model: Path | str,
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
            **plan_options: as `make_plan`.

        Raises:
            InputError, ModelError: as `make_plan`, `Checkpoint.open`, `load_on_meta`; the residual form; a planned
                module's weight is not in the checkpoint as it is.
        """
        if type(seed) is not int:
            raise InputError(f"seed {seed!r} is not allowed: a whole number")
        if num_labels is not None and (type(num_labels) is not int or num_labels < 1):
            raise InputError(f"num_labels {num_labels!r} is not allowed: a whole number from 1")
        folder = model_folder(model)
        base = load_on_meta(str(folder), task_type, num_labels=num_labels)
        if task_type is None and type(base).__name__ not in (base.config.architectures or []):
            raise InputError(
                f"the configuration of {model} names no architecture of transformers, which decides the names in the "
                "file: give the task type (--task-type), such as CAUSAL_LM"
            )
        plan = make_plan(base, policy, task_type=task_type, **plan_options)
        if plan.form is Form.RESIDUAL:
            raise InputError(
                "form 'residual' is not written out of core: choose anchored or stock; ailora.adapt(model, "
                "form='residual') overwrites the float32 weights of a loaded model"
            )
        checkpoint = Checkpoint.open(folder)
        names = match_checkpoint_keys(base, plan.modules, checkpoint.tensors, by_name_only=True)
        stored = {module: checkpoint.tensors[name] for module, name in names.items()}
        for module, tensor in stored.items():
            _validate_shape(tensor, base_layer(base, module), plan.modules[module][0].projection.shape)
        return cls(str(model), base, checkpoint, _with_stored_dtypes(plan, stored), stored, seed)

    @property
    def bytes_to_read(self) -> int:
        """Bytes of the planned modules' weights."""
        return sum(tensor.size for tensor in {tensor.name: tensor for tensor in self.stored.values()}.values())

    @property
    def memory_bound(self) -> int:
        """Bytes beyond those of the process at its start that decomposing takes at most, with one worker."""
        return max(_working_bytes(tensor) for tensor in self.stored.values()) * _COPIES + _MARGIN

    def estimate(self, *, device: str = "cpu") -> dict[str, float]:
        """Modules, bytes, operations, memory and a rough time, as plain data; nothing is read."""
        validate_device(device)
        made = self.jobs(Path(), device=device, cached=False)
        speed = flops.matmul_speed(torch.device(device))
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
        return is_stored_transposed(base_layer(self.base, module))

    @property
    def recorded_name(self) -> str:
        """What loaders find the base model by: a folder by its whole path, a hub id as it is."""
        local = self.model.startswith("builtin:") or Path(self.model).expanduser().is_dir()
        return str(model_folder(self.model)) if local else self.model

    @property
    def reads(self) -> list[Path]:
        """The files that are read."""
        folder = self.checkpoint.folder
        return [*(folder / name for name in self.checkpoint.headers), folder / "config.json"]

    @property
    def request(self) -> dict[str, Any]:
        """What decides the result, as plain data."""
        stats = {file.name: file_state(file) for file in self.reads}
        named = {"command": "init", "model": self.recorded_name, "seed": self.seed, "files": stats}
        named["labels"] = self.base.config.num_labels
        return named | {"plan": self.plan.to_dict(), "versions": library_versions()}


def _validate_shape(tensor: StoredTensor, layer: nn.Module, shape: tuple[int, int]) -> None:
    if not tensor.floating:
        raise ModelError(
            f"{tensor}: a quantized weight cannot be decomposed out of core; give the unquantized checkpoint"
        )
    expected = shape[::-1] if is_stored_transposed(layer) else shape
    if tensor.shape != expected:
        raise InputError(f"{tensor}: the configuration says {expected}; is the checkpoint quantized or damaged?")


def _with_stored_dtypes(plan: Plan, stored: Mapping[str, StoredTensor]) -> Plan:
    """The plan with the dtypes of the checkpoint, which a model without weights does not know."""
    adapters = []
    for planned in plan.adapters:
        dtype = str(stored[planned.projection.module].torch_dtype).removeprefix("torch.")
        adapters.append(replace(planned, projection=replace(planned.projection, dtype=dtype)))
    return replace(plan, adapters=tuple(adapters))


def _working_bytes(tensor: StoredTensor) -> int:
    """Bytes of the matrix in float32, or float64 where it is that."""
    return tensor.size // tensor.torch_dtype.itemsize * (8 if tensor.dtype == "F64" else 4)
