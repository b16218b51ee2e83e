"""A tiny Llama and a tiny T5 with a tokenizer trained here, and a task that they can learn: facts to sentences."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

THINGS = ["car", "door", "lamp", "cup", "boat", "coat", "chair", "bag"]
COLOURS = ["red", "blue", "green", "black", "white", "brown"]
PLACES = ["garden", "kitchen", "harbour", "office"]

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}</s>{% endgeneration %}"
    "{% else %}{{ message['content'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def facts(count: int, *, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Facts and a sentence that says them; some facts come twice, with another sentence."""
    rng = random.Random(seed)
    for _ in range(count):
        thing, colour, place = rng.choice(THINGS), rng.choice(COLOURS), rng.choice(PLACES)
        sentence = rng.choice(
            [f"The {thing} in the {place} is {colour}.", f"There is a {colour} {thing} in the {place}."]
        )
        yield f"thing[{thing}], colour[{colour}], place[{place}]", sentence


def write_facts(folder: Path, *, train: int, validation: int) -> dict[str, str]:
    """`train.csv` and `validation.csv` with the columns mr and ref."""
    paths = {}
    for seed, (split, count) in enumerate({"train": train, "validation": validation}.items()):
        paths[split] = str(folder / f"{split}.csv")
        with open(paths[split], "w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(("mr", "ref"))
            writer.writerows(facts(count, seed=seed))
    return paths


def tokenizer() -> tf.PreTrainedTokenizerFast:
    """Byte-level BPE of 400 tokens, trained on the facts."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    special = ["<pad>", "<s>", "</s>", "<user>", "<assistant>", "<system>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator((f"{mr} => {ref}" for mr, ref in facts(500, seed=9)), trainer)
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=128
    )


def pretrain(model: tf.PreTrainedModel, words: tf.PreTrainedTokenizerFast, steps: int = 120) -> None:
    """Teach a model the sentences, without the facts that they say."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sentences = [ref for _, ref in facts(steps * 16, seed=7)]
    model.train()
    for step in range(steps):
        texts = [f" {text}</s>" for text in sentences[16 * step : 16 * step + 16]]
        batch = words(texts, padding=True, return_token_type_ids=False, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def llama_config(words: tf.PreTrainedTokenizerFast, **changes: Any) -> tf.LlamaConfig:
    """A Llama of two narrow layers, with grouped queries."""
    return tf.LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        initializer_range=0.1,
        **changes,
    )


def save_llama(folder: Path) -> str:
    """A Llama of two narrow layers that has read some sentences."""
    words = tokenizer()
    config = llama_config(words, max_position_embeddings=128, tie_word_embeddings=True)
    torch.manual_seed(1)
    model = tf.LlamaForCausalLM(config)
    pretrain(model, words)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def save_t5(folder: Path) -> str:
    """A T5 of two narrow layers."""
    words = tokenizer()
    config = tf.T5Config(
        vocab_size=len(words),
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        decoder_start_token_id=words.pad_token_id,
    )
    torch.manual_seed(1)
    tf.T5ForConditionalGeneration(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)
