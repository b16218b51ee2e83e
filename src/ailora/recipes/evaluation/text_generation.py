"""Generate completions of prompts in batches, over all processes of a run."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.generation.configuration_utils import GenerationMode

from ailora.distributed import gather, split_between_processes
from ailora.errors import InputError, unknown_name
from ailora.formatting import shorten

#: Modes of generation whose code transformers downloads from the hub.
_REMOTE_CODE_MODES = (
    GenerationMode.CONTRASTIVE_SEARCH,
    GenerationMode.DOLA_GENERATION,
    GenerationMode.GROUP_BEAM_SEARCH,
    GenerationMode.CONSTRAINED_BEAM_SEARCH,
)

#: Width of models whose configuration names none.
_DEFAULT_CACHE_WIDTH = 64
_TOY_LLAMA: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}
_TOY_T5: dict[str, Any] = {"d_model": 16, "d_kv": 16, "d_ff": 16, "num_layers": 1, "num_heads": 1}


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
    # The memory of beams without a limit ends the process, or the machine.
    if (fields.get("num_beams") or 1) > len(tokenizer):
        raise InputError(
            f"evaluation.generate: num_beams must be at most {len(tokenizer)}, the size of the vocabulary, got "
            f"{fields['num_beams']}"
        )
    # A prompt has one completion, and that is a row of token ids.
    if fields.get("num_return_sequences") not in (None, 1):
        raise InputError("evaluation.generate: num_return_sequences is 1: a prompt has one completion")
    if fields.get("return_dict_in_generate"):
        raise InputError("evaluation.generate: return_dict_in_generate is false: completions are texts")
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    try:
        config = GenerationConfig(**{"do_sample": False, "max_new_tokens": 128, **special, **fields})
        # A setting that contradicts another, as a temperature without sampling, would be ignored with a warning.
        config.validate(strict=True)
    except (ValueError, TypeError) as error:
        raise InputError(f"evaluation.generate: {_format_contradictions(error)}") from error
    if (mode := config.get_generation_mode()) in _REMOTE_CODE_MODES:
        raise InputError(
            f"evaluation.generate: {mode.value.replace('_', ' ')} is not a part of transformers any more, which would "
            "load code from the hub for it, and such code is never run; expected greedy search, sampling or beams"
        )
    return config


def _format_contradictions(error: Exception) -> str:
    """Return the items of transformers' list of contradictions, or the whole text of another error."""
    items = [line.removeprefix("- ") for line in str(error).splitlines() if line.startswith("- ")]
    return " ".join(items) or str(error)


def get_cache_width(config: PreTrainedConfig) -> int:
    """Return the number of values per token in the keys that a layer of a language model caches."""
    text: Any = config.get_text_config(decoder=True)
    heads = getattr(text, "num_attention_heads", None) or 1
    head_dim = getattr(text, "head_dim", None) or getattr(text, "hidden_size", _DEFAULT_CACHE_WIDTH) // heads
    return head_dim * (getattr(text, "num_key_value_heads", None) or heads)


def try_generation(
    config: GenerationConfig, tokenizer: PreTrainedTokenizerBase, *, batch_size: int, seq2seq: bool, cache_width: int
) -> None:
    """Generate a token with a toy model: transformers looks at many fields only then, which is after the training.

    Args:
        config: from `build_generation_config`.
        tokenizer: the model's.
        batch_size: prompts at a time.
        seq2seq: whether the model has an encoder.
        cache_width: values per token in the keys that a layer of the model caches.

    Raises:
        InputError: transformers cannot generate as configured.
    """
    short = copy.deepcopy(config)
    # How long, and what depends on the sizes of the model.
    short.update(max_new_tokens=1, max_length=None, min_new_tokens=None, min_length=0)
    short.update(compile_config=None)
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    prompts = [list(tokenizer("one two three")["input_ids"])] * min(2, batch_size)
    if short.cache_implementation == "quantized":
        # A quantized cache is split into groups of equal size: with prompts of any length, only groups that divide the
        # values of a token always fit.
        sizes["head_dim"], prompts = cache_width, [prompts[0][:1]]
    with torch.random.fork_rng(devices=[]):
        if seq2seq:
            sizes["decoder_start_token_id"] = tokenizer.pad_token_id
            model: Any = T5ForConditionalGeneration(T5Config(**sizes, **_TOY_T5))
        else:
            model = LlamaForCausalLM(LlamaConfig(**sizes, **_TOY_LLAMA))
        try:
            _generate_batch(model.eval(), tokenizer, prompts, short)
        # Its many processors fail in as many ways.
        except Exception as error:
            reason = shorten(" ".join(str(error).split()), 300)
            raise InputError(f"evaluation.generate: {type(error).__name__}: {reason}") from None


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
        output = language_model.generate(**inputs, generation_config=config, tokenizer=tokenizer)
    # The output of a causal model begins with its prompt.
    start = 0 if seq2seq else inputs["input_ids"].shape[1]
    return tokenizer.batch_decode(output[:, start:], skip_special_tokens=True)
