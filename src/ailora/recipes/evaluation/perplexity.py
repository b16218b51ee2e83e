"""How likely a model finds texts: exact sums over tokens, whatever the batches."""

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


@dataclass(frozen=True)
class Likelihood:
    """The negative log-likelihood of texts.

    Attributes:
        total: its sum over the tokens that count, in nats.
        tokens: how many count.
    """

    total: float
    tokens: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.total / self.tokens

    @property
    def perplexity(self) -> float:
        """`exp` of the loss; infinite where that is too large for a number."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def likelihood(
    model: nn.Module, dataset: Dataset, collate: Callable[[list[Any]], dict[str, Tensor]], *, batch_size: int
) -> Likelihood:
    """The likelihood of the tokens of a data set that its labels count.

    All processes of a run take part, each with its share of the rows.

    Args:
        model: a language model, or one that wraps it.
        dataset: `input_ids` and `labels` per row.
        collate: makes a batch of rows.
        batch_size: rows at a time.
    """
    device = next(model.parameters()).device
    seq2seq = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    sums = torch.zeros(2, dtype=torch.float64, device="cpu")
    lengths = [len(ids) for ids in dataset["input_ids"]]
    mine = split_between_processes(sorted(range(len(lengths)), key=lengths.__getitem__))
    batches = DataLoader(dataset.select([i for i, _ in mine]), batch_size=batch_size, collate_fn=collate)  # type: ignore[arg-type]
    counted = iter([counts for _, counts in mine])
    training = model.training
    model.eval()
    with torch.no_grad():
        for batch in tqdm(batches, desc="likelihood", leave=False, disable=None):
            inputs = {key: value.to(device) for key, value in batch.items()}
            labels = inputs.pop("labels") if not seq2seq else inputs["labels"]
            for row in range(len(labels)):
                if not next(counted):
                    labels[row] = IGNORE_INDEX
            logits = model(**inputs).logits
            if not seq2seq:
                logits, labels = logits[:, :-1], labels[:, 1:]
            nll = nn.functional.cross_entropy(
                logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
            )
            sums += torch.stack([nll.double().cpu(), (labels != IGNORE_INDEX).sum().double().cpu()])
    model.train(training)
    total = all_reduce_sum({"nll": float(sums[0]), "tokens": float(sums[1])})
    return Likelihood(total["nll"], int(total["tokens"]))
