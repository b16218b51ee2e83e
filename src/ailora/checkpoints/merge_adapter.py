"""`ailora merge`: a checkpoint with an adapter worked into its weights, shard by shard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint, LoraWeights
from ailora.adapter_io.peft_config_file import CONFIG_NAME, WEIGHTS_NAME, validate_plain
from ailora.atomic_io import json_bytes
from ailora.checkpoints.checkpoint_writer import (
    TensorTransform,
    auxiliary_files,
    copy_auxiliary_files,
    rewrite,
    shard_names,
)
from ailora.checkpoints.output_dir import OutputDir, file_state
from ailora.checkpoints.stored_weight import StoredWeight, open_adapted_base
from ailora.errors import ModelError
from ailora.plain_data import read_json_object
from ailora.plan.adapter_metadata import library_versions
from ailora.plan.task_type import get_task
from ailora.safetensors_io import Checkpoint, StoredTensor, parse_dtype, read_tensor
from ailora.weights.base_weight import matches_fingerprint
from ailora.weights.checkpoint_keys import checkpoint_key_map

#: Entries of a weight that are merged at a time.
_BLOCK_ENTRIES = 4 * 2**20


@dataclass(frozen=True)
class MergeReport:
    """Report of a `merge`.

    Attributes:
        folder: The merged model's folder.
        merged: How many weights the adapter changed.
        saved_modules: Tensors that were trained whole and took the place of the base's.
        bytes: Size of the merged model's tensors.
    """

    folder: str
    merged: int
    saved_modules: tuple[str, ...]
    bytes: int

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain data."""
        return asdict(self)


def merge(
    base: str, adapter: Path | str, out: Path | str, *, dtype: str | None = None, force: bool = False
) -> MergeReport:
    """Write `W + s B A` in the place of every adapted weight of a checkpoint, which is never loaded whole.

    Sums are made in float32 and rounded once. What the adapter does not change is copied byte for byte, with
    configuration and tokenizer. The result loads with `from_pretrained`. The same call after a kill resumes where it
    stopped.

    Args:
        base: The base model: a folder, a hub id in the cache, or `builtin:minilm`.
        adapter: Any LoRA adapter of linear modules, ours or not; its folder, or a run's.
        out: The folder to write.
        dtype: fp32, bf16 or fp16, of all floating tensors. None: each keeps its own.
        force: Replace what `out` holds.

    Returns:
        How many weights and bytes were written.

    Raises:
        InputError, ModelError: No LoRA there, one that was made for another base, a weight that is quantized, missing,
            of another shape or not finite after merging, a head that does not fit.
    """
    target = None if dtype is None else parse_dtype(dtype)
    trained = AdapterCheckpoint.open(adapter)
    validate_plain(trained.config, trained.folder)
    model, checkpoint, weights = open_adapted_base(base, trained)
    folder = checkpoint.folder
    transforms = {
        weights[module].tensor.name: _merging(lora, weights[module], trained)
        for module, lora in trained.modules.items()
    }
    if len(transforms) < len(weights):
        raise ModelError("two adapted modules share one weight, which cannot hold both updates")
    replaced, labels = _replaced(trained, model, checkpoint)
    reads = [folder / name for name in (*shard_names(checkpoint), "config.json")]
    reads += [trained.folder / name for name in (CONFIG_NAME, WEIGHTS_NAME)]
    if target and (fp8 := next((t for t in checkpoint.tensors.values() if t.dtype.startswith("F8")), None)):
        raise ModelError(f"{fp8} belongs to a quantized checkpoint, whose scales another dtype would spoil")
    request = {
        "command": "merge",
        "base": str(folder),
        "files": [file_state(file) for file in reads],
        "versions": library_versions(),
        "dtype": dtype,
    }
    output = OutputDir(out)
    with output.acquire(
        request, reads=reads, writes=[*auxiliary_files(folder), *shard_names(checkpoint)], force=force
    ) as done:
        if not done:
            copy_auxiliary_files(folder, output, changed={"config.json": _config(folder, model, labels, target)})
            rewrite(checkpoint, output, transforms, dtype=target, replaced=replaced)
            output.finish()
    written = Checkpoint.open(output.folder)
    return MergeReport(str(out), len(transforms), tuple(sorted(trained.saved)), written.nbytes)


def _merging(lora: LoraWeights, stored: StoredWeight, adapter: AdapterCheckpoint) -> TensorTransform:
    """Return how a stored weight changes, block by block of its stored rows."""
    stored.validate_floating()
    transposed = stored.transposed

    def merged(weight: Tensor) -> Iterator[Tensor]:
        validate_base(adapter, lora.module, weight)
        A, B = lora.factors()
        left, right = (A.mT, B.mT) if transposed else (B, A)
        magnitude = read_tensor(lora.magnitude) if lora.magnitude else None
        # The magnitudes are those of rows (out, in), which a transposed weight has in its columns.
        rows = len(weight) if transposed and magnitude is not None else max(1, _BLOCK_ENTRIES // weight.shape[1])
        for first in range(0, len(weight), rows):
            block = weight[first : first + rows].to(A.dtype)
            block = torch.addmm(block, left[first : first + rows], right, alpha=lora.scaling)
            if magnitude is not None:
                block = _with_magnitude(block, magnitude, slice(first, first + rows), transposed=transposed)
            yield block

    return merged


def _with_magnitude(block: Tensor, magnitude: Tensor, rows: slice, *, transposed: bool) -> Tensor:
    """DoRA (arXiv 2402.09353): every row of (out, in) in the direction of `W + s B A`, as long as its magnitude."""
    if transposed:
        return block * (magnitude.to(block.dtype) / block.norm(dim=0))
    return block * (magnitude[rows].to(block.dtype) / block.norm(dim=1))[:, None]


def validate_base(adapter: AdapterCheckpoint, module: str, weight: Tensor) -> None:
    """Refuse another weight than the adapter was made from, where its metadata say which that is.

    Raises:
        ModelError: It is another weight.
        InputError: The adapter belongs on residual weights, and this is the untouched one.
    """
    metadata, plan = adapter.metadata, adapter.plan
    if metadata is None or plan is None or module not in metadata.fingerprints:
        return
    dtype = plan.modules[module][0].projection.dtype
    same = matches_fingerprint(weight, metadata.fingerprints[module], dtype)
    if same:
        adapter.validate_untouched_base()
    if same is False and not adapter.targets_residual_base:
        raise ModelError(
            f"{module}: the weight is not the one that {adapter.folder} was made from ({metadata.base_model}); "
            "`ailora verify` says more"
        )


def _replaced(
    adapter: AdapterCheckpoint, model: PreTrainedModel, checkpoint: Checkpoint
) -> tuple[dict[str, StoredTensor], int | None]:
    """Find the place of the tensors that were trained whole.

    Returns:
        The tensors by the name of the one whose place they take, or their own; and how many labels the head has, where
        it has others than the configuration says.
    """
    stored_names = {name: tensor for tensor, name in checkpoint_key_map(model, checkpoint.tensors).items()}
    parameters: Mapping[str, Tensor] = model.state_dict()
    label_counts: set[int] = set()
    replaced = {}
    for name, stored in adapter.saved.items():
        if name not in parameters:
            raise ModelError(f"{stored}: the model {type(model).__name__} has no parameter {name}")
        _validate_ties(adapter, model, name)
        shape = tuple(parameters[name].shape)
        if stored.shape != shape:
            of_labels = get_task(adapter.task_type).predicts_classes and shape[:1] == (model.config.num_labels,)
            if not of_labels or stored.shape[1:] != shape[1:]:
                raise ModelError(f"{stored}: the parameter {name} of {type(model).__name__} is {shape}")
            label_counts.add(stored.shape[0])
        replaced[stored_names.get(name, name)] = stored
    if len(label_counts) > 1:
        raise ModelError(f"the heads in {adapter.folder} disagree on the number of labels: {sorted(label_counts)}")
    return replaced, next(iter(label_counts), None)


def _validate_ties(adapter: AdapterCheckpoint, model: PreTrainedModel, name: str) -> None:
    """Refuse one of two tied parameters that was trained alone."""
    ties: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for tied, source in ties.items():
        if (name == source) != (name == tied) and not {tied, source} <= adapter.saved.keys():
            raise ModelError(
                f"{adapter.saved[name]}: {tied} and {source} share one weight, and the adapter trained one of them"
            )


def _config(folder: Path, model: PreTrainedModel, labels: int | None, dtype: torch.dtype | None) -> bytes:
    config = read_json_object(folder / "config.json", allow_nan=True)
    config["architectures"] = [type(model).__name__]
    if labels is not None:
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(labels)}
        config.pop("num_labels", None)
    if dtype is not None:
        name = str(dtype).removeprefix("torch.")
        config = _in_dtype(config, name) | {"dtype": name}
    return json_bytes(config)


def _in_dtype(config: dict[str, object], dtype: str) -> dict[str, object]:
    """Return a configuration, and those of its parts, with another dtype where they name one."""
    changed = {key: _in_dtype(value, dtype) if isinstance(value, dict) else value for key, value in config.items()}
    named = {key: value for key, value in changed.items() if key != "torch_dtype"}
    return named | {"dtype": dtype} if "torch_dtype" in config or "dtype" in config else named
