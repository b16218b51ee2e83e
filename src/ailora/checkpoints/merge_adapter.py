"""`ailora merge`: merge an adapter into the weights of a checkpoint, shard by shard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ailora.adapter_io.adapter_checkpoint import AdapterCheckpoint
from ailora.adapter_io.completeness import validate_complete
from ailora.adapter_io.lora_weights import LoraWeights
from ailora.adapter_io.peft_config_file import validate_plain
from ailora.checkpoints.auxiliary_files import copy_auxiliary_files, find_auxiliary_files, find_tokenizer_files
from ailora.checkpoints.checkpoint_writer import TensorTransform, list_shard_names, rewrite
from ailora.checkpoints.modules_to_save import SavedTensors, find_saved_tensors
from ailora.checkpoints.output_dir import OutputDir
from ailora.checkpoints.request import read_file_state
from ailora.checkpoints.stored_weight import StoredWeight, open_adapted_base
from ailora.errors import InputError, ModelError
from ailora.formatting import truncate
from ailora.library_versions import library_versions
from ailora.model_loading import counts_positions_from_padding
from ailora.plain_data import read_json_object
from ailora.plan.task_type import get_task
from ailora.safetensors_io import Checkpoint, parse_dtype, read_tensor
from ailora.weights.base_weight import matches_fingerprint
from ailora.weights.checkpoint_keys import checkpoint_key_map
from ailora.weights.tied_weights import validate_untied

#: Largest number of entries of a weight that are merged at a time. A block has at least one row, and with DoRA, a
#: transposed weight is a single block.
_BLOCK_ENTRIES = 4 * 2**20


@dataclass(frozen=True)
class MergeReport:
    """Report of a `merge`.

    Attributes:
        folder: Folder of the merged model.
        merged: Number of weights changed by the adapter.
        saved_modules: Names of tensors from fully fine-tuned modules. They replace tensors of the base.
        bytes: Size of all tensors in the merged model, in bytes.
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
    """Write a checkpoint with `W + s B A` in place of every adapted weight, without loading the model.

    Sums are computed in float32, or in float64 if the weight or a factor has this dtype, and rounded once. Tensors of
    fully fine-tuned modules replace those of the base. Without `dtype`, all other tensors are copied byte for byte. The
    tokenizer of the base is copied too. If the vocabulary was resized, a tokenizer in the adapter's folder takes its
    place. The result loads with `from_pretrained`. Repeating an interrupted call resumes.

    Args:
        base: Base model: a folder, a hub id in the cache, or `builtin:minilm`.
        adapter: Folder of an adapter or of a run. The adapter may be any LoRA of linear modules.
        out: Folder to write.
        dtype: Dtype of all floating-point tensors: fp32, bf16 or fp16. None keeps the dtype of each tensor.
        force: Whether to replace existing files in `out`.

    Returns:
        The report, with the number of changed weights and the size of the model.

    Raises:
        InputError: The adapter, the base or the output folder is invalid, or the adapter is not a supported LoRA.
        ModelError: The adapter was made for a different base; a weight is quantized, missing, of unexpected shape, or
            not finite after merging; or a head does not fit the model.
    """
    torch_dtype = None if dtype is None else parse_dtype(dtype)
    lora_checkpoint = AdapterCheckpoint.open(adapter)
    validate_plain(lora_checkpoint.config, lora_checkpoint.folder)
    model, checkpoint, weights = open_adapted_base(base, lora_checkpoint)
    transforms = _build_transforms(lora_checkpoint, model, weights)
    validate_complete(lora_checkpoint, model)
    # Merged weights are checked when they are written, but fully fine-tuned modules and DoRA's magnitudes only here.
    lora_checkpoint.validate_finite()
    saved = find_saved_tensors(lora_checkpoint, model, checkpoint)
    if torch_dtype is not None:
        _validate_convertible(checkpoint)
    folder = checkpoint.folder
    reads = [folder / name for name in (*list_shard_names(checkpoint), "config.json")]
    # Without `ailora.json`, `result.json` of the run holds the labels and the padding token.
    result_file = _find_result_file(lora_checkpoint)
    reads += [*lora_checkpoint.files, *([result_file] if result_file else [])]
    # The tokenizer of the base lacks the tokens that were added before training.
    tokenizer = find_tokenizer_files(lora_checkpoint.folder) if saved.vocab_size is not None else {}
    reads += tokenizer.values()
    auxiliary = find_auxiliary_files(folder, tokenizer=tokenizer)
    request = {
        "command": "merge",
        "base": str(folder),
        "files": [read_file_state(file) for file in reads],
        "versions": library_versions(),
        "dtype": dtype,
    }
    config = _merged_config(folder, lora_checkpoint, saved, model, dtype=torch_dtype)
    output = OutputDir(out)
    with output.acquire(request, reads=reads, writes=[*auxiliary, *list_shard_names(checkpoint)], force=force) as done:
        if not done:
            copy_auxiliary_files(auxiliary, output, changed={"config.json": _format_config(config)})
            # Fully fine-tuned tensors have the names of the model's parameters. A checkpoint may have older names.
            key_map = checkpoint_key_map(model, checkpoint.tensors)
            key_by_name = {name: key for key, name in key_map.items()}
            replaced = {key_by_name.get(name, name): tensor for name, tensor in saved.tensors.items()}
            rewrite(checkpoint, output, transforms, dtype=torch_dtype, replaced=replaced)
            output.finish()
    written = Checkpoint.open(output.folder)
    return MergeReport(str(output.folder), len(transforms), tuple(sorted(lora_checkpoint.saved)), written.nbytes)


def _build_transforms(
    adapter: AdapterCheckpoint, model: PreTrainedModel, weights: dict[str, StoredWeight]
) -> dict[str, TensorTransform]:
    """Build the function that merges the update of each adapted weight.

    Returns:
        Name of the weight's tensor in the checkpoint -> function.

    Raises:
        ModelError: An adapted weight is tied, shared by two modules, or quantized.
    """
    validate_untied(model, adapter.modules)
    transforms = {
        weights[module].tensor.name: _build_transform(lora, weights[module], adapter)
        for module, lora in adapter.modules.items()
    }
    # Two modules with the same stored tensor have a single entry in `transforms`.
    if len(transforms) < len(weights):
        raise ModelError("two adapted modules share a weight, and a single weight cannot hold both updates")
    return transforms


def _validate_convertible(checkpoint: Checkpoint) -> None:
    """Refuse a new dtype for a checkpoint in FP8, whose scales would no longer fit. Integers keep their dtype."""
    if fp8 := next((tensor for tensor in checkpoint.tensors.values() if tensor.dtype.startswith("F8")), None):
        raise ModelError(f"{fp8} belongs to a quantized checkpoint, which must keep its dtypes: leave out the dtype")


def _build_transform(lora: LoraWeights, stored: StoredWeight, adapter: AdapterCheckpoint) -> TensorTransform:
    """Build the function that adds the update to a stored weight, a block of rows at a time."""
    stored.validate_floating()
    transposed = stored.transposed

    def merge_rows(weight: Tensor) -> Iterator[Tensor]:
        validate_base(adapter, lora.module, weight)
        A, B = lora.read_factors()
        # Factors in float32 must not round a weight in float64.
        dtype = torch.promote_types(A.dtype, weight.dtype)
        A, B = A.to(dtype), B.to(dtype)
        left, right = (A.mT, B.mT) if transposed else (B, A)
        magnitude = read_tensor(lora.magnitude) if lora.magnitude else None
        # DoRA needs the norm over the inputs of each output. In a transposed weight, an output is a column, so that the
        # norm needs all rows at once.
        needs_all_rows = transposed and magnitude is not None
        block_rows = len(weight) if needs_all_rows else max(1, _BLOCK_ENTRIES // weight.shape[1])
        for first in range(0, len(weight), block_rows):
            rows = slice(first, first + block_rows)
            block = torch.addmm(weight[rows].to(dtype), left[rows], right, alpha=lora.scaling)
            if magnitude is not None:
                block = _apply_magnitude(block, magnitude, rows, transposed=transposed)
            yield block

    return merge_rows


def _apply_magnitude(block: Tensor, magnitude: Tensor, rows: slice, *, transposed: bool) -> Tensor:
    """Scale every row of `W + s B A` (out, in) to its magnitude, as DoRA does (arXiv 2402.09353).

    Args:
        block: `W + s B A` in `rows`; if transposed, the whole matrix (in, out).
        magnitude: Magnitudes (out,) of all rows.
        rows: Rows of the block.
        transposed: Whether the block is transposed.
    """
    if transposed:
        return block * (magnitude.to(block.dtype) / block.norm(dim=0))
    return block * (magnitude[rows].to(block.dtype) / block.norm(dim=1))[:, None]


def validate_base(adapter: AdapterCheckpoint, module: str, weight: Tensor) -> None:
    """Refuse a weight if its fingerprint differs from the fingerprint in the adapter's metadata.

    For an adapter that needs residual weights, refuse the original weight instead.

    Args:
        adapter: Adapter to merge. An adapter without metadata accepts every weight.
        module: Name of the module.
        weight: Stored weight of the module.

    Raises:
        ModelError: The fingerprints differ.
        InputError: The weight is the original weight, but the adapter needs residual weights.
    """
    metadata, plan = adapter.metadata, adapter.plan
    if metadata is None or plan is None or module not in metadata.fingerprints:
        return
    dtype = plan.modules[module][0].projection.dtype
    # None if a dtype prevents a comparison.
    matches = matches_fingerprint(weight, metadata.fingerprints[module], dtype)
    if adapter.needs_residual_weight(module):
        # The factors fit `W - s B0 A0`. On the original `W`, they would add `s B0 A0` twice. This call always raises.
        if matches:
            adapter.validate_no_residual_base()
    elif matches is False:
        raise ModelError(
            f"{module}: the weight differs from the base of the adapter in {adapter.folder} ({metadata.base_model}); "
            "`ailora verify` shows details"
        )


def _merged_config(
    folder: Path, adapter: AdapterCheckpoint, saved: SavedTensors, model: PreTrainedModel, *, dtype: torch.dtype | None
) -> dict[str, Any]:
    """Return the configuration of the merged model: the base model's, with the adapter's labels and the new dtype."""
    config = _adapted_config(folder, adapter, saved, model) | {"architectures": [type(model).__name__]}
    if dtype is None:
        return config
    dtype_name = str(dtype).removeprefix("torch.")
    return _replace_dtype(config, dtype_name) | {"dtype": dtype_name}


def _adapted_config(
    folder: Path, adapter: AdapterCheckpoint, saved: SavedTensors, model: PreTrainedModel
) -> dict[str, Any]:
    """Return the base model's configuration with the adapter's labels, vocabulary size and padding token."""
    config = read_json_object(folder / "config.json", allow_nan=True)
    task = _read_trained_task(adapter)
    if labels := _choose_labels(task.labels, outputs=model.config.num_labels, trained_outputs=saved.label_count):
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
        # transformers derives the number of labels from `id2label`.
        config.pop("num_labels", None)
    text_config = config.get("text_config")
    parts = [config, text_config] if isinstance(text_config, dict) else [config]
    if task.pad_token_id is not None:
        # Models like RoBERTa count positions from the base's padding token, so they must keep it. Other classifiers may
        # read the last token before the padding, so they need the token of training.
        needs_trained_token = get_task(adapter.task_type).predicts_classes and not counts_positions_from_padding(model)
        _set_padding_token(parts, task.pad_token_id, replace=needs_trained_token)
    for part in parts:
        # In a configuration with a text model, the outer part may have no `vocab_size`.
        has_vocabulary = part is text_config or not text_config or "vocab_size" in part
        if saved.vocab_size is not None and has_vocabulary:
            part["vocab_size"] = saved.vocab_size
        if saved.untied:
            part["tie_word_embeddings"] = False
    return config


@dataclass(frozen=True)
class _TrainedTask:
    """Label names and padding token from training, each None if unknown."""

    labels: tuple[str, ...] | None
    pad_token_id: int | None


def _read_trained_task(adapter: AdapterCheckpoint) -> _TrainedTask:
    """Read label names and padding token from `ailora.json`, or without this file from the run's `result.json`.

    Raises:
        InputError: The result of the run is damaged.
    """
    if adapter.metadata is not None:
        return _TrainedTask(adapter.metadata.labels, adapter.metadata.pad_token_id)
    file = _find_result_file(adapter)
    if file is None:
        return _TrainedTask(None, None)
    result = read_json_object(file, allow_nan=True)
    labels, pad_token_id = result.get("labels"), result.get("pad_token_id")
    if labels is not None and not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise InputError(f"{file} is damaged: labels must be a list of names or null, got {truncate(repr(labels), 80)}")
    if pad_token_id is not None and type(pad_token_id) is not int:
        raise InputError(f"{file} is damaged: pad_token_id must be a whole number or null, got {pad_token_id!r:.80}")
    return _TrainedTask(None if labels is None else tuple(labels), pad_token_id)


def _find_result_file(adapter: AdapterCheckpoint) -> Path | None:
    """Return `result.json` of the run that wrote an adapter without metadata. None without such a run."""
    file = adapter.folder.parent / "result.json"
    # Runs with an init by PEFT or by a user's function write stock adapters, which have no `ailora.json`.
    return file if adapter.metadata is None and adapter.folder.name == "adapter" and file.is_file() else None


def _choose_labels(
    labels: tuple[str, ...] | None, *, outputs: int | None, trained_outputs: int | None
) -> tuple[str, ...] | None:
    """Choose label names for the merged configuration.

    Names from training are taken if the head has as many outputs. Otherwise, a head of new size gets numbered names.

    Args:
        labels: Label names from training. None if unknown.
        outputs: Number of outputs of the base's head.
        trained_outputs: Number of outputs of the trained head. None if equal to `outputs`.

    Returns:
        The names. None keeps the names in the base's configuration.
    """
    if labels is not None and len(labels) == (trained_outputs or outputs):
        return labels
    return None if trained_outputs is None else tuple(f"LABEL_{i}" for i in range(trained_outputs))


def _format_config(config: Mapping[str, Any]) -> bytes:
    # Write NaN and infinite numbers as bare words, which transformers reads with Python's `json`. `json_bytes` of
    # `ailora.atomic_io` writes strings, which transformers would take for text.
    return (json.dumps(config, indent=2) + "\n").encode()


def _set_padding_token(parts: Sequence[dict[str, Any]], token_id: int, *, replace: bool) -> None:
    """Set the padding token of training in a configuration.

    Args:
        parts: Configuration of the merged model, and if there is one, that of its text model. Changed in place.
        token_id: Padding token of training.
        replace: Whether to replace the base's token in all parts. If False, set the token only if the base has none.
    """
    if replace:
        for part in parts:
            part["pad_token_id"] = token_id
    elif all(part.get("pad_token_id") is None for part in parts):
        parts[0]["pad_token_id"] = token_id


def _replace_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return a copy of a configuration with a new dtype, including nested configurations."""
    changed = {key: _replace_dtype(value, dtype) if isinstance(value, dict) else value for key, value in config.items()}
    # Earlier versions of transformers named this key `torch_dtype`. Its old value would contradict `dtype`.
    without_old_key = {key: value for key, value in changed.items() if key != "torch_dtype"}
    has_dtype = "torch_dtype" in config or "dtype" in config
    return without_old_key | ({"dtype": dtype} if has_dtype else {})
