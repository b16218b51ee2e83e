"""What is measured of a trained language model: likelihood, generated texts, forgetting."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import DataCollatorForSeq2Seq, GenerationConfig, PreTrainedTokenizerBase

from ailora.atomic_io import format_json, write_text
from ailora.recipes.config.language_config import EvaluationConfig
from ailora.recipes.data.classification_rows import sample_indices
from ailora.recipes.data.language_rows import Row, Rows
from ailora.recipes.data.tokenize_language import IGNORE_INDEX, Tokenization
from ailora.recipes.evaluation.perplexity import Likelihood, likelihood
from ailora.recipes.evaluation.text_generation import generate
from ailora.recipes.evaluation.text_metrics import text_scores


@dataclass(frozen=True)
class Evaluator:
    """Measures a model.

    Attributes:
        config: `evaluation:`.
        tokenization: how rows become tokens.
        generation: how texts are generated; None: they are not.
        batch_size: rows at a time.
    """

    config: EvaluationConfig
    tokenization: Tokenization
    generation: GenerationConfig | None
    batch_size: int

    def likelihood(self, model: nn.Module, dataset: Dataset) -> Likelihood:
        """As `likelihood`, of tokenized rows."""
        return likelihood(model, dataset, self.collate, batch_size=self.batch_size)

    def collate(self, rows: list[Any]) -> dict[str, Tensor]:
        """A batch of tokenized rows, padded to the longest of them."""
        return dict(DataCollatorForSeq2Seq(self.tokenizer, label_pad_token_id=IGNORE_INDEX)(rows))

    def measure(self, model: nn.Module, dataset: Dataset, rows: Rows) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Loss, perplexity and scores of a split, and the samples that were scored.

        Args:
            model: the trained model.
            dataset: the tokenized rows whose likelihood counts.
            rows: all rows of the split, which references are taken from.
        """
        found = self.likelihood(model, dataset)
        samples = self.samples(model, rows)
        return {"loss": found.loss, "perplexity": found.perplexity} | self.scores(samples), samples

    def inputs(self, rows: Rows) -> list[list[Row]]:
        """The rows to generate for: those of one input together, cut to the configured number.

        Raises:
            InputError: a column of `group_by` that is not there.
        """
        groups = rows.group_by(self.config.groups)
        return [groups[i] for i in sample_indices(len(groups), self.config.max_samples)]

    def samples(self, model: nn.Module, rows: Rows) -> list[dict[str, Any]]:
        """What the model writes for every input: prompt, output and references."""
        if self.generation is None:
            return []
        groups = self.inputs(rows)
        outputs = self.generate(model, [group[0] for group in groups])
        return [
            {
                "prompt": self.tokenizer.decode(self.tokenization.encode_prompt(group[0])),
                "output": output,
                "references": [self.tokenization.reference_text(row).strip() for row in group],
            }
            for group, output in zip(groups, outputs, strict=True)
        ]

    def generate(self, model: nn.Module, rows: list[Row]) -> list[str]:
        """Generate a text after the prompt of every row."""
        assert self.generation is not None
        prompts = [self.tokenization.encode_prompt(row) for row in rows]
        texts = generate(model, self.tokenizer, prompts, config=self.generation, batch_size=self.batch_size)
        return [text.strip() for text in texts]

    def scores(self, samples: list[dict[str, Any]]) -> dict[str, float]:
        """The configured scores of samples."""
        if not samples or not self.config.metrics:
            return {}
        texts = [sample["output"] for sample in samples]
        return text_scores(self.config.metrics, texts, [sample["references"] for sample in samples])

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""
        return self.tokenization.tokenizer


def measure_forgetting(
    evaluator: Evaluator, model: nn.Module, general: Dataset, base: Likelihood | None
) -> dict[str, float]:
    """Measure how far the loss on general text has risen over the base model's, in nats per token.

    Args:
        evaluator: measures likelihoods.
        model: the trained model.
        general: tokenized general text.
        base: the likelihood under the base model; None if the model without its adapter is the base.

    Returns:
        `base_loss`, `loss`, `rise` and the number of `tokens`.
    """
    now = evaluator.likelihood(model, general)
    if base is None:
        assert isinstance(model, PeftModel)
        with model.disable_adapter():
            base = evaluator.likelihood(model, general)
    return {"base_loss": base.loss, "loss": now.loss, "rise": now.loss - base.loss, "tokens": now.tokens}


def write_samples(file: Path, samples: Iterable[dict[str, Any]]) -> None:
    """Write generated texts, an object a line."""
    write_text(file, "".join(format_json(sample, ascii_only=False) + "\n" for sample in samples))
