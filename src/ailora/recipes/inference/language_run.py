"""Use a finished run of a language model's recipe: score it on data, write with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ailora.errors import InputError
from ailora.recipes.causal_lm import causal_arguments, causal_tokenization
from ailora.recipes.config.schema import CausalLMConfig, LanguageConfig
from ailora.recipes.data.language_rows import Row, load_rows, to_rows
from ailora.recipes.data.readers import read_tables
from ailora.recipes.data.tokenize_language import Tokenization
from ailora.recipes.evaluation.language_evaluation import Evaluator
from ailora.recipes.evaluation.predictions import write_frame
from ailora.recipes.inference.trained_run import check_output, load_trained, result_of
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.seq2seq import seq2seq_tokenization
from ailora.recipes.training.fit import on_one_process, training_arguments
from ailora.recipes.training.language_results import make_evaluator
from ailora.recipes.training.language_training import language_loader


class FinishedLanguageModel:
    """A run that has ended, with its model loaded as any stock loader would.

    Raises:
        InputError: the folder holds no finished run.
    """

    def __init__(self, folder: RunFolder, config: LanguageConfig) -> None:
        result_of(folder)
        self._folder = folder
        self.config = config
        self._evaluator = evaluator_of(config)

    def evaluate(self, data_file: str | None = None) -> dict[str, float]:
        """Loss, perplexity and scores on the run's validation data, or on a file with the same columns.

        Raises:
            InputError: bad data.
        """
        data = self.config.data
        if data_file is None:
            rows = load_rows(data, "validation")
            used = rows.cut(data.max_validation_samples)
        else:
            rows = used = to_rows(read_tables(data_file, data.columns), data)
        dataset = self._evaluator.tokenization.dataset(used)
        model = self.load()
        scores, _ = self._evaluator.measure(model, dataset, rows)
        return scores

    def predict(self, input_file: str, output_file: Path | str) -> int:
        """Write the columns of every row of a file, and what the model writes after its prompt, as `output`.

        Raises:
            InputError: bad data, an output of another kind, a run that generates nothing.
        """
        output = Path(output_file)
        check_output(output, input_file)
        table = read_tables(input_file, self.config.data.columns)
        rows = to_rows(table, self.config.data, complete=False)
        texts = self.write(rows.rows)
        frame = pd.DataFrame([row.values for row in rows.rows]).assign(output=texts)
        write_frame(frame, output)
        return len(frame)

    def write(self, rows: list[Row]) -> list[str]:
        """What the model writes after the prompt of every row.

        Raises:
            InputError: the run generates nothing.
        """
        if self._evaluator.generation is None:
            raise InputError(f"{self._folder.path} generates nothing: its evaluation.generate is not set")
        return self._evaluator.write(self.load(), rows)

    @property
    def tokenization(self) -> Tokenization:
        """How rows become tokens."""
        return self._evaluator.tokenization

    def load(self) -> Any:
        """The trained model, on an accelerator where there is one."""
        load = language_loader(self.config, self.tokenization)
        model: Any = load_trained(self._folder, self.config, load)
        # A quantized model is where its library has put it.
        return model.to(torch.accelerator.current_accelerator() or "cpu") if self.config.quantization is None else model


def evaluator_of(config: Any) -> Evaluator:
    """What measures the model of a run, in one process."""
    config = on_one_process(config)
    if isinstance(config, CausalLMConfig):
        arguments = causal_arguments(config)
        return make_evaluator(config, causal_tokenization(config, arguments), arguments)
    return make_evaluator(config, seq2seq_tokenization(config), training_arguments(config))
