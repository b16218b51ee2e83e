"""Generate completions for many prompts."""

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

#: Ways to generate that transformers downloads as code.
_MODES_OF_THE_HUB = (
    GenerationMode.CONTRASTIVE_SEARCH,
    GenerationMode.DOLA_GENERATION,
    GenerationMode.GROUP_BEAM_SEARCH,
    GenerationMode.CONSTRAINED_BEAM_SEARCH,
)


def generation_config(fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """The configuration of a generation; greedy unless the fields say otherwise.

    Raises:
        InputError: a field that does not exist, a value that transformers refuses.
    """
    known = sorted(key for key in GenerationConfig().to_dict() if key != "transformers_version")
    for key in fields:
        if key not in known:
            raise unknown_name("key in evaluation.generate", key, known)
    for key in ("max_new_tokens", "num_beams"):
        if (value := fields.get(key, 1)) is not None and not (type(value) is int and value >= 1):
            raise InputError(f"evaluation.generate: {key} is a whole number from 1, not {value!r}")
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    try:
        config = GenerationConfig(**{"do_sample": False, "max_new_tokens": 128, **special, **fields})
    except (ValueError, TypeError) as error:
        raise InputError(f"evaluation.generate: {error}") from error
    if (mode := config.get_generation_mode()) in _MODES_OF_THE_HUB:
        raise InputError(
            f"evaluation.generate: {mode.value.replace('_', ' ')} is not a part of transformers any more, which would "
            "load code from the hub for it, and such code is never run; expected greedy search, sampling or beams"
        )
    return config


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    config: GenerationConfig,
    batch_size: int,
) -> list[str]:
    """The completion of every prompt, without special tokens.

    All processes of a run take part, each with its share. Prompts of similar length go together, longest first.

    Args:
        model: a language model, or one that wraps it.
        tokenizer: the model's.
        prompts: token ids.
        config: from `generation_config`.
        batch_size: prompts at a time.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    mine = split_between_processes(order)
    made: list[str] = []
    training = model.training
    model.eval()
    for start in tqdm(range(0, len(mine), batch_size), desc="generating", leave=False, disable=None):
        numbers = [number for number, _ in mine[start : start + batch_size]]
        made += _batch(model, tokenizer, [prompts[i] for i in numbers], config)
    model.train(training)
    texts = gather([text for text, (_, counts) in zip(made, mine, strict=True) if counts])
    by_number = dict(zip(order, texts, strict=True))
    return [by_number[i] for i in range(len(prompts))]


def _batch(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], config: GenerationConfig
) -> list[str]:
    device = next(model.parameters()).device
    seq2seq = bool(model.config.is_encoder_decoder)
    # A completion starts where its prompt ends, so that padding stands before it.
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="right" if seq2seq else "left", return_tensors="pt")
    inputs = {key: padded[key].to(device) for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        output = model.generate(**inputs, generation_config=config)
    start = 0 if seq2seq else inputs["input_ids"].shape[1]
    return tokenizer.batch_decode(output[:, start:], skip_special_tokens=True)
