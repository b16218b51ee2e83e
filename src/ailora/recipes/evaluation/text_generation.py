"""Generate completions of prompts, in batches on all processes of a run."""

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

#: Modes of generation for which transformers would download code from the hub.
_REMOTE_CODE_MODES = (
    GenerationMode.CONTRASTIVE_SEARCH,
    GenerationMode.DOLA_GENERATION,
    GenerationMode.GROUP_BEAM_SEARCH,
    GenerationMode.CONSTRAINED_BEAM_SEARCH,
)

#: Placeholder for an answer, to find the tokens that a chat template writes after an answer. No template contains this
#: text itself.
_ANSWER = "answer-7f3a"
#: Hidden size assumed for models whose configuration has no `hidden_size`.
_DEFAULT_HIDDEN_SIZE = 64
#: Sizes of the toy models in `try_generation`.
_TOY_LLAMA: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}
_TOY_T5: dict[str, Any] = {"d_model": 16, "d_kv": 16, "d_ff": 16, "num_layers": 1, "num_heads": 1}


def build_generation_config(
    fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, *, chat: bool = False
) -> GenerationConfig:
    """Build and validate a generation configuration. The defaults are greedy search and at most 128 new tokens.

    Args:
        fields: Fields of `transformers.GenerationConfig`.
        tokenizer: Tokenizer of the model; provides the default padding and end-of-text tokens.
        chat: Whether prompts are conversations. Completions then also end where the chat template ends an answer.

    Returns:
        The configuration.

    Raises:
        InputError: A field is unknown, a value is invalid, or transformers would need code from the hub.
    """
    _validate_fields(fields, tokenizer)
    end_ids = [tokenizer.eos_token_id, *(_find_answer_end(tokenizer) if chat else [])]
    special_ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": list(dict.fromkeys(end_ids))}
    try:
        config = GenerationConfig(**{"do_sample": False, "max_new_tokens": 128, **special_ids, **fields})
        # Without `strict`, settings that have no effect only cause a warning, such as a temperature without sampling.
        config.validate(strict=True)
    except (ValueError, TypeError) as error:
        raise InputError(f"evaluation.generate: {_format_contradictions(error)}") from error
    if (mode := config.get_generation_mode()) in _REMOTE_CODE_MODES:
        raise InputError(
            f"evaluation.generate: {mode.value.replace('_', ' ')} needs code from the hub, which ailora never runs; "
            "expected greedy search, beam search or sampling"
        )
    return config


def _validate_fields(fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse fields that transformers would ignore, or would refuse only during generation."""
    allowed = sorted(key for key in GenerationConfig().to_dict() if key != "transformers_version")
    for key in fields:
        if key not in allowed:
            raise unknown_name("key in evaluation.generate", key, allowed)
    # GenerationConfig accepts 2.5 tokens and 0 beams, so the run would fail only after training, when it generates.
    for key in ("max_new_tokens", "num_beams"):
        if (value := fields.get(key, 1)) is not None and not (type(value) is int and value >= 1):
            raise InputError(f"evaluation.generate: {key} must be a whole number of at least 1, got {value!r}")
    # Memory grows with the number of beams: without a limit, a mistyped number can exhaust the memory of the machine.
    if (fields.get("num_beams") or 1) > len(tokenizer):
        raise InputError(
            f"evaluation.generate: num_beams must be at most {len(tokenizer)}, the size of the vocabulary, got "
            f"{fields['num_beams']}"
        )
    # `_generate_batch` expects a tensor with a row of token ids per prompt.
    if fields.get("num_return_sequences") not in (None, 1):
        raise InputError(
            "evaluation.generate: num_return_sequences must be 1, because only one completion per prompt is scored, "
            f"got {fields['num_return_sequences']}"
        )
    if fields.get("return_dict_in_generate"):
        raise InputError(
            "evaluation.generate: return_dict_in_generate must be false, because only generated texts are used, "
            f"got {fields['return_dict_in_generate']}"
        )


def validate_no_max_length(fields: Mapping[str, Any]) -> None:
    """Refuse the field `max_length` of a generation configuration.

    Args:
        fields: Fields of `transformers.GenerationConfig`.

    Raises:
        InputError: `max_length` is set.
    """
    # transformers silently ignores max_length beside max_new_tokens, which has a default here. In addition, max_length
    # counts the prompt, which alone may be longer.
    if fields.get("max_length") is not None:
        raise InputError(
            "evaluation.generate: max_length also counts the prompt of a causal model, and has no effect beside "
            f"max_new_tokens, got {fields['max_length']!r}; set max_new_tokens instead"
        )


def _find_answer_end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Find the token with which the chat template ends an answer, such as `<|im_end|>` or `<end_of_turn>`.

    In many templates, this token differs from the tokenizer's end-of-text token. A model trained with such a template
    never generates the end-of-text token.

    Returns:
        Id of the first added token after the answer. Empty if the template writes no such token, or if the template
        fails on a question with an answer.
    """
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    # A template can raise any exception. Rows on which it fails are refused when they are tokenized.
    except Exception:
        return []
    _, answer, end = text.rpartition(_ANSWER)
    ids = tokenizer(end, add_special_tokens=False)["input_ids"] if answer else []
    return [i for i in ids if i in tokenizer.added_tokens_decoder][:1]


def _format_contradictions(error: Exception) -> str:
    """Return the list items in a message from `GenerationConfig.validate`, or the whole message if it has no list."""
    items = [line.removeprefix("- ") for line in str(error).splitlines() if line.startswith("- ")]
    return " ".join(items) or str(error)


def get_cache_width(config: PreTrainedConfig) -> int:
    """Return the width of a token's keys in the cache of a layer: the number of key heads times their size."""
    text_config: Any = config.get_text_config(decoder=True)
    heads = getattr(text_config, "num_attention_heads", None) or 1
    hidden_size = getattr(text_config, "hidden_size", _DEFAULT_HIDDEN_SIZE)
    head_dim = getattr(text_config, "head_dim", None) or hidden_size // heads
    return head_dim * (getattr(text_config, "num_key_value_heads", None) or heads)


def try_generation(
    config: GenerationConfig, tokenizer: PreTrainedTokenizerBase, *, batch_size: int, seq2seq: bool, cache_width: int
) -> None:
    """Generate a token with a toy model, to find settings that transformers refuses only during generation.

    A run generates texts after training, so an error at that time would waste the training.

    Args:
        config: Configuration from `build_generation_config`.
        tokenizer: Tokenizer of the model.
        batch_size: Prompts per batch.
        seq2seq: Whether the model is an encoder-decoder.
        cache_width: Width of a token's keys in the cache of the real model; see `get_cache_width`.

    Raises:
        InputError: transformers cannot generate with the configuration.
    """
    toy_config = copy.deepcopy(config)
    # Lengths and compilation are chosen for the real model, and could fail or take long with the toy model.
    toy_config.update(max_new_tokens=1, max_length=None, min_new_tokens=None, min_length=0)
    toy_config.update(compile_config=None)
    model_fields: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    prompts = [list(tokenizer("one two three")["input_ids"])] * min(2, batch_size)
    if toy_config.cache_implementation == "quantized":
        # A quantized cache is split into groups of equal size. Prompts of all lengths fit only if this size divides the
        # width of a token's keys, so the toy model gets a single token, and keys as wide as the real model's.
        model_fields["head_dim"] = cache_width
        prompts = [prompts[0][:1]]
    with torch.random.fork_rng(devices=[]):
        if seq2seq:
            model_fields["decoder_start_token_id"] = tokenizer.pad_token_id
            model: Any = T5ForConditionalGeneration(T5Config(**model_fields, **_TOY_T5))
        else:
            model = LlamaForCausalLM(LlamaConfig(**model_fields, **_TOY_LLAMA))
        try:
            _generate_batch(model.eval(), tokenizer, prompts, toy_config)
        # The logits processors of transformers raise exceptions of many types.
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
    """Generate a completion of each prompt. All processes of a run must call this function together.

    Args:
        model: Language model, possibly wrapped by PEFT.
        tokenizer: Tokenizer of the model.
        prompts: Token ids of each prompt.
        config: Configuration from `build_generation_config`.
        batch_size: Prompts per batch.

    Returns:
        Completions in the order of the prompts, without special tokens.
    """
    # Batches of prompts with similar lengths need little padding.
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    shard = split_between_processes(order)
    completions: list[str] = []
    training = model.training
    model.eval()
    for start in tqdm(range(0, len(shard), batch_size), desc="generating", leave=False, disable=None):
        batch = [prompts[i] for i, _ in shard[start : start + batch_size]]
        completions += _generate_batch(model, tokenizer, batch, config)
    model.train(training)
    # A rank with fewer prompts repeats the last prompt as padding. Drop the completions of this padding.
    texts = gather([text for text, (_, is_counted) in zip(completions, shard, strict=True) if is_counted])
    text_by_index = dict(zip(order, texts, strict=True))
    return [text_by_index[i] for i in range(len(prompts))]


def _generate_batch(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], config: GenerationConfig
) -> list[str]:
    language_model: Any = model
    device = next(model.parameters()).device
    seq2seq = bool(language_model.config.is_encoder_decoder)
    # A causal model continues after the last position of a row, so this position must not be padding.
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="right" if seq2seq else "left", return_tensors="pt")
    inputs = {key: padded[key].to(device) for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        output = language_model.generate(**inputs, generation_config=config, tokenizer=tokenizer)
    # The output of a causal model contains the prompt before the completion.
    start = 0 if seq2seq else inputs["input_ids"].shape[1]
    return tokenizer.batch_decode(output[:, start:], skip_special_tokens=True)
