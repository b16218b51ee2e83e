"""Every recipe by name: what runs it, and what uses a finished run of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ailora.recipes import causal_lm, classification, seq2seq
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.inference.classification_run import FinishedClassification
from ailora.recipes.inference.language_run import FinishedLanguageModel
from ailora.recipes.inference.trained_run import FinishedRun
from ailora.recipes.run_folder import RunFolder

_RUN: dict[str, Callable[[Any, Sequence[TrainerCallback]], dict[str, Any]]] = {
    "classification": classification.run,
    "causal_lm": causal_lm.run,
    "seq2seq": seq2seq.run,
}
_FINISHED: dict[str, Callable[[RunFolder, Any], FinishedRun]] = {
    "classification": FinishedClassification,
    "causal_lm": FinishedLanguageModel,
    "seq2seq": FinishedLanguageModel,
}


def run(config: RunConfig, callbacks: Sequence[TrainerCallback] = ()) -> dict[str, Any]:
    """Run the recipe that a configuration names; what `result.json` then holds.

    Args:
        config: from `load_config`.
        callbacks: further callbacks of the Trainer.

    Raises:
        InputError, ModelError: as the recipe's own `run`.
    """
    return _RUN[config.recipe](config, callbacks)


def finished_run(folder: Path | str) -> FinishedRun:
    """The finished run in a folder.

    Raises:
        InputError: the folder holds no run, or one that has not finished.
    """
    place = RunFolder(folder)
    config = place.read_config()
    return _FINISHED[config.recipe](place, config)
