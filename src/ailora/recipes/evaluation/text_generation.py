"""Generate completions of prompts in batches, over all processes of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation.configuration_utils import GenerationMode

from ailora.distributed import gather, split_between_processes
from ailora.errors import InputError, unknown_name

#: Modes of generation whose code transformers downloads from the hub.
_REMOTE_CODE_MODES = (
    GenerationMode.CONTRASTIVE_SEARCH,
    GenerationMode.DOLA_GENERATION,
    GenerationMode.GROUP_BEAM_SEARCH,
    GenerationMode.CONSTRAINED_BEAM_SEARCH,
)


def build_generation_config(fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Build and validate the parameters of a generation; greedy, with at most 128 new tokens, by default.

    Args:
        fields: fields of `transformers.GenerationConfig`.
        tokenizer: tokenizer of the model, whose padding and end-of-text tokens are the defaults.

    Returns:
        The parameters.

    Raises:
        InputError: A field is unknown, transformers refuses a value, or the mode needs code from the hub.
    """
    allowed = sorted(key for key in GenerationConfig().to_dict() if key != "transformers_version")
    for key in fields:
        if key not in allowed:
            raise unknown_name("key in evaluation.generate", key, allowed)
    # transformers accepts 2.5 tokens and 0 beams here, and fails only when it generates.
    for key in ("max_new_tokens", "num_beams"):
        if (value := fields.get(key, 1)) is not None and not (type(value) is int and value >= 1):
            raise InputError(f"evaluation.generate: {key} must be a whole number from 1, got {value!r}")
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    try:
        config = GenerationConfig(**{"do_sample": False, "max_new_tokens": 128, **special, **fields})
    except (ValueError, TypeError) as error:
        raise InputError(f"evaluation.generate: {error}") from error
    if (mode := config.get_generation_mode()) in _REMOTE_CODE_MODES:
        raise InputError(
            f"evaluation.generate: {mode.value.replace('_', ' ')} is not a part of transformers any more, which would "
            "load code from the hub for it, and such code is never run; expected greedy search, sampling or beams"
        )
    return config


def generate_texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    config: GenerationConfig,
    batch_size: int,
) -> list[str]:
    """Generate a completion of each prompt. All processes of a run take part.

    Args:
        model: language model, possibly wrapped by PEFT.
        tokenizer: tokenizer of the model.
        prompts: token ids of each prompt.
        config: parameters of generation; see `build_generation_config`.
        batch_size: prompts per batch.

    Returns:
        Texts in the order of the prompts, without special tokens.
    """
    # Prompts of similar length make batches of little padding.
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    mine = split_between_processes(order)
    completions: list[str] = []
    training = model.training
    model.eval()
    for start in tqdm(range(0, len(mine), batch_size), desc="generating", leave=False, disable=None):
        numbers = [number for number, _ in mine[start : start + batch_size]]
        completions += _generate_batch(model, tokenizer, [prompts[i] for i in numbers], config)
    model.train(training)
    texts = gather([text for text, (_, counts) in zip(completions, mine, strict=True) if counts])
    by_number = dict(zip(order, texts, strict=True))
    return [by_number[i] for i in range(len(prompts))]


def _generate_batch(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], config: GenerationConfig
) -> list[str]:
    language_model: Any = model
    device = next(model.parameters()).device
    seq2seq = bool(language_model.config.is_encoder_decoder)
    # A decoder continues the last position of a row, which must not be padding.
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="right" if seq2seq else "left", return_tensors="pt")
    inputs = {key: padded[key].to(device) for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        output = language_model.generate(**inputs, generation_config=config)
    # The output of a causal model begins with its prompt.
    start = 0 if seq2seq else inputs["input_ids"].shape[1]
    return tokenizer.batch_decode(output[:, start:], skip_special_tokens=True)
