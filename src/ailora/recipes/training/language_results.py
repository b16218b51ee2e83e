"""The data of a run that trains a language model, and what is known of it at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import TrainingArguments

from ailora.distributed import is_main
from ailora.recipes.baselines.adapter_origin import made_of
from ailora.recipes.config.schema import LanguageConfig
from ailora.recipes.data.language_rows import Row, Rows, load_rows
from ailora.recipes.data.readers import read_tables
from ailora.recipes.data.templates import Template
from ailora.recipes.data.tokenize_language import Tokenization
from ailora.recipes.evaluation.language_evaluation import Evaluator, forgetting, write_samples
from ailora.recipes.evaluation.perplexity import Likelihood
from ailora.recipes.evaluation.text_generation import generation_config
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.training.fit import Fitted, Model, facts, save_model, write_result


@dataclass(frozen=True)
class LanguageData:
    """The splits of a run.

    Attributes:
        rows: all rows of a split.
        tokenized: `input_ids` and `labels` of those that are used.
        general: likewise of general text; None: forgetting is not measured.
    """

    rows: dict[str, Rows]
    tokenized: dict[str, Dataset]
    general: Dataset | None


def make_evaluator(config: LanguageConfig, tokenization: Tokenization, arguments: TrainingArguments) -> Evaluator:
    """What measures the model of a run.

    Raises:
        InputError: generation is configured in a way that transformers refuses.
    """
    fields = config.evaluation.generate
    generation = None if fields is None else generation_config(fields, tokenization.tokenizer)
    return Evaluator(config.evaluation, tokenization, generation, arguments.per_device_eval_batch_size)


def load_data(config: LanguageConfig, evaluator: Evaluator) -> LanguageData:
    """Read and tokenize every split.

    Raises:
        InputError: bad data, rows of which nothing is left to learn, columns that are not there.
    """
    data, tokenization = config.data, evaluator.tokenization
    rows = {split: load_rows(data, split) for split in data.splits}
    tokenized = {
        split: tokenization.dataset(whole.cut(getattr(data, f"max_{split}_samples", None)))
        for split, whole in rows.items()
    }
    for split in data.splits[1:] if evaluator.generation else []:
        evaluator.inputs(rows[split])
    return LanguageData(rows, tokenized, _general(config, tokenization))


def _general(config: LanguageConfig, tokenization: Tokenization) -> Dataset | None:
    evaluation = config.evaluation
    if evaluation.general_text is None:
        return None
    table = read_tables(evaluation.general_text)
    template = Template.of(evaluation.general_template, "evaluation.general_template")
    rows = [Row(where, None, template.fill(columns, where), columns) for columns, where in table.records()]
    return tokenization.dataset(Rows(rows).cut(evaluation.max_general_samples))


def likelihood_of_base(evaluator: Evaluator, data: LanguageData, model: Model) -> Likelihood | None:
    """The likelihood of general text under the model at its start, where training will overwrite the base.

    None where the adapter can be switched off, or nothing is asked for.
    """
    overwritten = made_of(model).overwritten
    return evaluator.likelihood(model, data.general) if overwritten and data.general is not None else None


def finish(
    config: LanguageConfig, fitted: Fitted, data: LanguageData, *, evaluator: Evaluator, base: Likelihood | None
) -> dict[str, Any]:
    """Measure every split, and write all that a finished run holds, `result.json` last."""
    folder, model = RunFolder(config.output), fitted.trainer.model
    assert model is not None
    metrics, samples = {}, []
    for split in config.data.splits[1:]:
        metrics[split], made = evaluator.measure(model, data.tokenized[split], data.rows[split])
        samples += [{"split": split, **sample} for sample in made]
    result: dict[str, Any] = {"metrics": metrics}
    if data.general is not None:
        result["forgetting"] = forgetting(evaluator, model, data.general, base).described()
    result |= facts(config, fitted)
    save_model(config, fitted.trainer, result)
    if is_main():
        if evaluator.generation is not None:
            write_samples(folder.samples, samples)
        write_result(folder, result)
    return result
