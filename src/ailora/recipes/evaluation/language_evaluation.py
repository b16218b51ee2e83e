"""Evaluate a trained language model: likelihood, generated texts, forgetting."""

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
from ailora.recipes.evaluation.perplexity import Likelihood, compute_likelihood
from ailora.recipes.evaluation.text_generation import generate_texts
from ailora.recipes.evaluation.text_metrics import score_texts


@dataclass(frozen=True)
class Evaluator:
    """Evaluate language models by likelihood and by generated texts.

    Attributes:
        config: Section `evaluation:` of the configuration.
        tokenization: Tokenizer of the model, with settings for truncation and loss.
        generation: Configuration of generation. None if no texts are generated.
        batch_size: Rows per batch.
    """

    config: EvaluationConfig
    tokenization: Tokenization
    generation: GenerationConfig | None
    batch_size: int

    def compute_likelihood(self, model: nn.Module, dataset: Dataset) -> Likelihood:
        """Compute the likelihood of tokenized rows. See `ailora.recipes.evaluation.perplexity.compute_likelihood`."""
        return compute_likelihood(model, dataset, self.collate, batch_size=self.batch_size)

    def collate(self, rows: list[Any]) -> dict[str, Tensor]:
        """Return a batch of tokenized rows, padded to the length of the longest row."""
        return dict(DataCollatorForSeq2Seq(self.tokenizer, label_pad_token_id=IGNORE_INDEX)(rows))

    def measure(self, model: nn.Module, dataset: Dataset, rows: Rows) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Measure loss and perplexity on a split, and score generated texts.

        Args:
            model: Trained model.
            dataset: Tokenized rows of the split, perhaps a sample, for loss and perplexity.
            rows: All rows of the split, for the prompts and references of generated texts.

        Returns:
            Measurements by name, and the generated samples; see `generate_samples`.
        """
        likelihood = self.compute_likelihood(model, dataset)
        samples = self.generate_samples(model, rows)
        measurements = {"loss": likelihood.loss, "perplexity": likelihood.perplexity}
        return measurements | self.score_samples(samples), samples

    def group_inputs(self, rows: Rows) -> list[list[Row]]:
        """Group rows with equal values in the columns of `evaluation.group_by`. Without this key, each row is a group.

        A single text is generated for each group. The completions in the group are its references.

        Args:
            rows: All rows of a split.

        Returns:
            All groups, or a sample of `max_samples` groups.

        Raises:
            InputError: A column of `evaluation.group_by` is missing, or holds lists or objects.
        """
        groups = rows.group_by(self.config.group_columns)
        return [groups[i] for i in sample_indices(len(groups), self.config.max_samples)]

    def generate_samples(self, model: nn.Module, rows: Rows) -> list[dict[str, Any]]:
        """Generate a text for each group of `group_inputs`.

        Args:
            model: Language model.
            rows: All rows of a split.

        Returns:
            `prompt`, `output` and `references` of each sample; empty if no texts are generated.
        """
        if self.generation is None:
            return []
        groups = self.group_inputs(rows)
        # The columns of `evaluation.group_by` identify an input, so all rows of a group have the prompt of the first.
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
        """Generate a completion for each row's prompt. Strip leading and trailing whitespace of the completions."""
        assert self.generation is not None
        prompts = [self.tokenization.encode_prompt(row) for row in rows]
        texts = generate_texts(model, self.tokenizer, prompts, config=self.generation, batch_size=self.batch_size)
        return [text.strip() for text in texts]

    def score_samples(self, samples: list[dict[str, Any]]) -> dict[str, float]:
        """Compute the configured metrics on samples from `generate_samples`."""
        if not samples or not self.config.metrics:
            return {}
        texts = [sample["output"] for sample in samples]
        return score_texts(self.config.metrics, texts, [sample["references"] for sample in samples])

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the model."""
        return self.tokenization.tokenizer


def measure_forgetting(
    evaluator: Evaluator, model: nn.Module, general: Dataset, base_likelihood: Likelihood | None
) -> dict[str, float]:
    """Measure forgetting: by how much training has increased the loss on general text.

    Args:
        evaluator: Evaluator of the run.
        model: Trained model.
        general: Tokenized text of `evaluation.general_text`.
        base_likelihood: Likelihood of this text under the base model. If None, measure it with the adapter disabled.

    Returns:
        `base_loss`, `loss` and the difference `rise` in nats per token, and the number of `tokens`.
    """
    trained = evaluator.compute_likelihood(model, general)
    if base_likelihood is None:
        assert isinstance(model, PeftModel)
        with model.disable_adapter():
            base_likelihood = evaluator.compute_likelihood(model, general)
    rise = trained.loss - base_likelihood.loss
    return {"base_loss": base_likelihood.loss, "loss": trained.loss, "rise": rise, "tokens": trained.tokens}


def write_samples(file: Path, samples: Iterable[dict[str, Any]]) -> None:
    """Write samples from `Evaluator.generate_samples` as JSON Lines."""
    write_text(file, "".join(format_json(sample, ascii_only=False) + "\n" for sample in samples))
