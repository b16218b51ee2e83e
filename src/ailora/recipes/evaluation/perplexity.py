"""Likelihood and perplexity of texts under a language model, summed exactly over tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ailora.distributed import all_reduce_sum, split_between_processes
from ailora.recipes.data.tokenize_language import IGNORE_INDEX
from ailora.recipes.position_limits import count_tokens


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood of texts.

    Attributes:
        total: Negative log-likelihood, summed over all labelled tokens, in nats.
        tokens: Number of labelled tokens.
    """

    total: float
    tokens: int

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood, in nats per token."""
        return self.total / self.tokens

    @property
    def perplexity(self) -> float:
        """Perplexity, `exp(loss)`; infinite for a loss of 700 or more, and NaN for a loss of NaN."""
        # math.exp raises OverflowError for arguments of about 710 and more.
        return math.inf if self.loss >= 700 else math.exp(self.loss)


def compute_likelihood(
    model: nn.Module, dataset: Dataset, collate: Callable[[list[Any]], dict[str, Tensor]], *, batch_size: int
) -> Likelihood:
    """Compute the likelihood of the labelled tokens in a dataset. All processes must call this function together.

    The Trainer's `eval_loss` averages the mean losses of batches, so it depends on the batch size. This likelihood is a
    sum over tokens, and does not.

    Args:
        model: Language model, possibly wrapped by PEFT.
        dataset: Rows with `input_ids` and `labels`. The label -100 excludes a token.
        collate: Function that pads rows to a batch.
        batch_size: Rows per batch.

    Returns:
        The likelihood over all rows, equal on all processes.
    """
    device = next(model.parameters()).device
    seq2seq = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    # Negative log-likelihood in nats, and number of labelled tokens.
    sums = torch.zeros(2, dtype=torch.float64, device="cpu")
    lengths = count_tokens(dataset)
    # Batches of rows with similar lengths need little padding. A shard is a list of pairs (row index, is_counted).
    shard = split_between_processes(sorted(range(len(lengths)), key=lengths.__getitem__))
    batches = DataLoader(dataset.select([i for i, _ in shard]), batch_size=batch_size, collate_fn=collate)  # type: ignore[arg-type]
    # In the order of the batches.
    counted_flags = iter([is_counted for _, is_counted in shard])
    training = model.training
    model.eval()
    with torch.no_grad():
        for batch in tqdm(batches, desc="likelihood", leave=False, disable=None):
            inputs = {key: value.to(device) for key, value in batch.items()}
            # With labels, a causal model would compute the loss a second time. An encoder-decoder needs labels as the
            # inputs of its decoder.
            labels = inputs.pop("labels") if not seq2seq else inputs["labels"]
            for row in range(len(labels)):
                # Ranks with fewer rows repeat some rows, because collective operations of sharded models wait for all
                # ranks. Repeated rows do not count.
                if not next(counted_flags):
                    labels[row] = IGNORE_INDEX
            logits = model(**inputs).logits
            if not seq2seq:
                logits, labels = logits[:, :-1], labels[:, 1:]
            nll = nn.functional.cross_entropy(
                logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
            )
            # Apple's GPUs have no float64.
            sums += torch.stack([nll.cpu().double(), (labels != IGNORE_INDEX).sum().cpu().double()])
    model.train(training)
    total = all_reduce_sum({"nll": float(sums[0]), "tokens": float(sums[1])})
    return Likelihood(total["nll"], int(total["tokens"]))
