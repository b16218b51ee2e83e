"""`ailora merge`: a checkpoint with an adapter worked into its weights, shard by shard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint, LoraWeights
from ailora.adapter_io.peft_config_file import validate_plain
from ailora.atomic_io import json_bytes
from ailora.checkpoints.checkpoint_writer import (
    TensorTransform,
    auxiliary_files,
    copy_auxiliary_files,
    rewrite,
    shard_names,
)
from ailora.checkpoints.modules_to_save import SavedTensors, find_saved_tensors
from ailora.checkpoints.output_dir import OutputDir, file_state
from ailora.checkpoints.stored_weight import StoredWeight, open_adapted_base
from ailora.errors import InputError, ModelError
from ailora.formatting import truncate
from ailora.library_versions import library_versions
from ailora.plain_data import read_json_object
from ailora.safetensors_io import Checkpoint, parse_dtype, read_tensor
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
    trained.validate_complete(model)
    trained.validate_finite()
    saved = find_saved_tensors(trained, model, checkpoint)
    stored_names = {name: tensor for tensor, name in checkpoint_key_map(model, checkpoint.tensors).items()}
    replaced = {stored_names.get(name, name): stored for name, stored in saved.tensors.items()}
    reads = [folder / name for name in (*shard_names(checkpoint), "config.json")]
    reads += [*trained.files, *filter(None, [_result_file(trained)])]
    if target and (fp8 := next((t for t in checkpoint.tensors.values() if t.dtype.startswith("F8")), None)):
        raise ModelError(f"{fp8} belongs to a quantized checkpoint, whose scales another dtype would spoil")
    request = {
        "command": "merge",
        "base": str(folder),
        "files": [file_state(file) for file in reads],
        "versions": library_versions(),
        "dtype": dtype,
    }
    config: dict[str, Any] = _adapted_config(folder, trained, saved, model) | {"architectures": [type(model).__name__]}
    if target is not None:
        name = str(target).removeprefix("torch.")
        config = _in_dtype(config, name) | {"dtype": name}
    output = OutputDir(out)
    with output.acquire(
        request, reads=reads, writes=[*auxiliary_files(folder), *shard_names(checkpoint)], force=force
    ) as done:
        if not done:
            copy_auxiliary_files(folder, output, changed={"config.json": json_bytes(config)})
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


def _adapted_config(
    folder: Path, adapter: AdapterCheckpoint, saved: SavedTensors, model: PreTrainedModel
) -> dict[str, Any]:
    """Return the configuration of a base model with what its adapter changed or knows better."""
    config = read_json_object(folder / "config.json", allow_nan=True)
    task = _read_trained_task(adapter)
    if labels := _label_names(task.labels, outputs=model.config.num_labels, trained_outputs=saved.label_count):
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
        config.pop("num_labels", None)
    if task.pad_token_id is not None:
        _set_where_missing(config, "pad_token_id", task.pad_token_id)
    text_config = config.get("text_config")
    for part in [config, text_config] if isinstance(text_config, dict) else [config]:
        if saved.vocabulary is not None and (part is text_config or not text_config or "vocab_size" in part):
            part["vocab_size"] = saved.vocabulary
        if saved.untied:
            part["tie_word_embeddings"] = False
    return config


@dataclass(frozen=True)
class _TrainedTask:
    """Labels and padding token that a model was trained with; None where nothing records them."""

    labels: tuple[str, ...] | None
    pad_token_id: int | None


def _read_trained_task(adapter: AdapterCheckpoint) -> _TrainedTask:
    """Read labels and padding token from our metadata, else from the result of the run that the adapter is part of.

    Raises:
        InputError: The result of the run is damaged.
    """
    if adapter.metadata is not None:
        return _TrainedTask(adapter.metadata.labels, adapter.metadata.pad_token_id)
    file = _result_file(adapter)
    if file is None:
        return _TrainedTask(None, None)
    result = read_json_object(file, allow_nan=True)
    labels, pad_token_id = result.get("labels"), result.get("pad_token_id")
    if labels is not None and not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise InputError(f"{file} is damaged: labels must be a list of names or null, got {truncate(repr(labels), 80)}")
    if pad_token_id is not None and type(pad_token_id) is not int:
        raise InputError(f"{file} is damaged: pad_token_id must be a whole number or null, got {pad_token_id!r:.80}")
    return _TrainedTask(None if labels is None else tuple(labels), pad_token_id)


def _result_file(adapter: AdapterCheckpoint) -> Path | None:
    """Return `result.json` of the run that an adapter without metadata is part of, if it is part of one."""
    file = adapter.folder.parent / "result.json"
    # Adapters of PEFT's inits and of functions of the user are stock ones; what a run knows is in its result.
    return file if adapter.metadata is None and adapter.folder.name == "adapter" and file.is_file() else None


def _label_names(
    labels: tuple[str, ...] | None, *, outputs: int | None, trained_outputs: int | None
) -> tuple[str, ...] | None:
    """Return the names of the labels: those of the training, or as many numbered ones as the head has outputs.

    Args:
        labels: Labels that the model was trained with, if they are recorded.
        outputs: Outputs of the base's head.
        trained_outputs: Outputs of the trained head, where the base has another number.

    Returns:
        The names. None where the configuration of the base has them.
    """
    if labels is not None and len(labels) == (trained_outputs or outputs):
        return labels
    return None if trained_outputs is None else tuple(f"LABEL_{i}" for i in range(trained_outputs))


def _set_where_missing(config: dict[str, Any], key: str, value: object) -> None:
    if config.get(key) is None and (config.get("text_config") or {}).get(key) is None:
        config[key] = value


def _in_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return a configuration, and those of its parts, with another dtype where they name one."""
    changed = {key: _in_dtype(value, dtype) if isinstance(value, dict) else value for key, value in config.items()}
    named = {key: value for key, value in changed.items() if key != "torch_dtype"}
    return named | {"dtype": dtype} if "torch_dtype" in config or "dtype" in config else named
