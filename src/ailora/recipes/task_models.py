"""Load pretrained models and tokenizers for a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.quantization_config import QuantizationConfigMixin

from ailora.errors import InputError
from ailora.model_loading import auto_class, counts_positions_from_padding, describe_load_error, validate_weights
from ailora.model_path import resolve_model
from ailora.plan.task_type import TASKS, TaskType
from ailora.recipes.data.labels import Labels
from ailora.weights.base_weight import all_finite
from ailora.weights.quantized import prevent_cpu_repacking

ModelT = TypeVar("ModelT", bound=PreTrainedModel | PeftModel)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Args:
        name: Hub id, local folder, or `builtin:minilm`.

    Returns:
        The tokenizer; the end-of-text token replaces a missing padding token.

    Raises:
        InputError: The model is missing, has no tokenizer, or its weights are not in safetensors files.
    """
    path = resolve_model(name)
    # Validate weights first: a model in an unsupported format often lacks a tokenizer too, and the error would then
    # mention only the tokenizer.
    validate_weights(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        # Some damaged files load, but fail on the first text.
        tokenizer("text")
    # Damaged files can cause any exception. A panic of Rust code is a BaseException, but not an Exception.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = describe_load_error(error, name)
        # Other exceptions need their type in the message: a KeyError shows only the missing key.
        if not isinstance(error, OSError | ValueError):
            reason = f"{type(error).__name__}: {reason}"
        raise InputError(f"cannot load the tokenizer of model {name!r}: {reason}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_classifier(
    path: str,
    labels: Labels,
    tokenizer: PreTrainedTokenizerBase,
    *,
    quantization: QuantizationConfigMixin | None = None,
) -> PreTrainedModel:
    """Load a pretrained model for classification or regression.

    Args:
        path: Folder or hub id.
        labels: Labels of the task.
        tokenizer: Tokenizer that pads the rows. Its padding token, if any, replaces that of the model, except in models
            such as RoBERTa, which count positions from their own padding token.
        quantization: Quantization of the weights on loading.

    Returns:
        The model. A new head is initialized from the global random state.

    Raises:
        InputError: The model is missing, or its architecture has no head for classification.
    """
    options: dict[str, Any] = {"num_labels": labels.num_labels}
    if labels.names is None:
        options["problem_type"] = "regression"
    else:
        options["id2label"] = dict(enumerate(labels.names))
        options["label2id"] = {name: i for i, name in enumerate(labels.names)}
    model = _load(TaskType.SEQ_CLS, path, quantization, **options)
    _set_padding_token(model, tokenizer)
    return model


def _set_padding_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the padding token of a classifier to that of the tokenizer; see `load_classifier`."""
    if tokenizer.pad_token_id is None:
        return
    # A causal model classifies a row by its last token other than padding. If the padding token of the model differs
    # from that of the tokenizer, the model reads padding as text, and scores depend on the batch. For example, the
    # configurations of many Llamas have token 0 or none.
    # Models such as RoBERTa count positions from their own padding token, and do not search for the last token.
    if not counts_positions_from_padding(model):
        for config in (model.config, model.config.get_text_config()):
            config.pad_token_id = tokenizer.pad_token_id


def load_language_model(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    task_type: TaskType,
    *,
    quantization: QuantizationConfigMixin | None = None,
) -> PreTrainedModel:
    """Load a pretrained language model, in the dtype of its configuration.

    Args:
        path: Folder or hub id.
        tokenizer: Tokenizer of the model. Its padding token is set on the model.
        task_type: Causal or sequence-to-sequence language modeling.
        quantization: Quantization of the weights on loading.

    Returns:
        The model.

    Raises:
        InputError: The model is missing, or does not fit the task type.
    """
    model = _load(task_type, path, quantization)
    model.config.pad_token_id = tokenizer.pad_token_id
    # transformers declares the attribute for every model, but encoders lack it.
    generation_config: GenerationConfig | None = getattr(model, "generation_config", None)
    if generation_config is not None:
        generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def validate_finite(model: ModelT, folder: Path) -> ModelT:
    """Validate that the trained tensors of a model are finite.

    Args:
        model: Fully fine-tuned or adapted model.
        folder: Folder from which the trained tensors were loaded.

    Returns:
        The model.

    Raises:
        InputError: A tensor of the folder holds NaN or infinite entries.
    """
    # The folder of an adapter does not contain the base weights, so these are not checked. By default, PEFT would also
    # look for the base model on the hub, to find out whether the vocabulary was resized.
    adapted = isinstance(model, PeftModel)
    trained = get_peft_model_state_dict(model, save_embedding_layers=False) if adapted else model.state_dict()
    for name, tensor in trained.items():
        if tensor.is_floating_point() and not all_finite(tensor):
            raise InputError(
                f"{folder}: {name} holds NaN or infinite entries: the training diverged; train the model again"
            )
    return model


def _load(
    task_type: TaskType, path: str, quantization: QuantizationConfigMixin | None, **options: Any
) -> PreTrainedModel:
    if quantization is not None:
        options["quantization_config"] = quantization
    try:
        validate_weights(path, download=True, digests=True)
        model = auto_class(task_type).from_pretrained(path, trust_remote_code=False, use_safetensors=True, **options)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        reason = describe_load_error(error, path)
        raise InputError(f"cannot load {path!r} for {TASKS[task_type].title}: {reason}") from error
    # On CPUs in eval mode, bitsandbytes repacks 4-bit weights, and gradients do not flow through repacked weights.
    if quantization is not None:
        prevent_cpu_repacking(model)
    return model
