"""Registry of recipes: run a configuration, and load a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ailora.atomic_io import write_text
from ailora.distributed import is_main
from ailora.errors import InputError
from ailora.recipes.causal_lm import CausalLMRecipe
from ailora.recipes.classification import ClassificationRecipe
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.inference.trained_run import TrainedRun, read_result
from ailora.recipes.model_card import make_model_card
from ailora.recipes.recipe import Evaluation, Recipe
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.seq2seq import Seq2SeqRecipe
from ailora.recipes.training.arguments import without_distributed_args
from ailora.recipes.training.results import TrainResult, summarize_run, write_result
from ailora.recipes.training.run_prefix import PrefixEnd, RunPrefix, StopAtPrefix, read_prefix
from ailora.recipes.training.save import safetensors_bytes, save_model
from ailora.recipes.training.setup import load_and_adapt
from ailora.recipes.training.train import train

RECIPES: Mapping[str, type[Recipe[RunConfig]]] = {
    "classification": ClassificationRecipe,
    "causal_lm": CausalLMRecipe,
    "seq2seq": Seq2SeqRecipe,
}


def make_recipe(config: RunConfig) -> Recipe[RunConfig]:
    """Build the recipe of a configuration, for use in a single process."""
    return RECIPES[config.recipe](without_distributed_args(config))


def run(config: RunConfig, callbacks: Sequence[TrainerCallback] = ()) -> dict[str, Any]:
    """Train, save and evaluate; resume a killed run, and return the stored result of a finished run.

    Args:
        config: Configuration returned by `load_config`.
        callbacks: Additional callbacks for the trainer.

    Returns:
        Content of `result.json`.

    Raises:
        InputError: The data are invalid, the model does not fit the recipe, or the folder holds a different run.
        ModelError: The model cannot be adapted as configured.
        DivergenceError: A loss, a gradient or a parameter is not finite, unless `on_nonfinite: continue`.
    """
    folder = RunFolder(config.output)
    if existing_result := folder.read_finished_result(config):
        return existing_result
    recipe = RECIPES[config.recipe](config)
    if is_main():
        folder.validate_claimable(config)
    recipe.prepare()
    model, init_seconds = load_and_adapt(recipe)
    recipe.before_training(model)
    # Claim the folder late, so that invalid input leaves no folder behind.
    with folder.claimed(config):
        # A different process may have finished the run while this process waited for the lock.
        if existing_result := folder.read_finished_result(config):
            return existing_result
        trained = train(recipe, model, init_seconds=init_seconds, callbacks=callbacks)
        # Save before evaluating: a failed evaluation must not lose the trained model.
        model_folder = save_model(config, trained.trainer)
        evaluation = _evaluate(recipe, trained, model_folder)
        # `merge` reads the padding token from the result if an adapter has no ailora metadata.
        pad_token_id = getattr(model.config, "pad_token_id", None)
        result = evaluation.result | summarize_run(config, trained)
        result |= {"adapter_bytes": safetensors_bytes(model_folder), "pad_token_id": pad_token_id}
        if is_main():
            folder.claim(folder.predictions, folder.samples, folder.result)
            if model_folder == folder.adapter:
                card = make_model_card(config, result, pad_token_id=pad_token_id)
                write_text(model_folder / "README.md", str(card))
            evaluation.write(folder)
            write_result(folder, result)
        return result


def run_prefix(config: RunConfig, prefix: RunPrefix, callbacks: Sequence[TrainerCallback] = ()) -> list[dict[str, Any]]:
    """Train the first steps of a run. A later call of `run` continues as if the run had not stopped.

    Args:
        config: Configuration of the complete run.
        prefix: Steps to train, up to an evaluation of the run.
        callbacks: Additional callbacks for the trainer.

    Returns:
        The evaluations up to the end of the prefix, as in `result.json`.

    Raises:
        InputError: `run` refuses the input, the run has a different number of steps, or the run does not evaluate at
            the last step of the prefix.
        ModelError: The model cannot be adapted as configured.
        DivergenceError: See `run`.
    """
    folder = RunFolder(config.output)
    if (history := read_prefix(folder, prefix, config.metrics)) is None:
        with suppress(PrefixEnd):
            run(config, [*callbacks, StopAtPrefix(prefix)])
        history = read_prefix(folder, prefix, config.metrics)
    if not history or history[-1]["step"] != prefix.step:
        raise InputError(f"{config.output}: the run does not evaluate at step {prefix.step}")
    return history


def _evaluate(recipe: Recipe[RunConfig], trained: TrainResult, model_folder: Path) -> Evaluation:
    try:
        return recipe.evaluate(trained.trainer)
    except Exception as error:
        error.add_note(f"The trained model is saved in {model_folder}. Repeat the command to evaluate the model again.")
        raise


def load_run(folder: Path | str) -> TrainedRun:
    """Load a finished run, without its model.

    Args:
        folder: Folder of the run.

    Returns:
        The run, for evaluation and prediction.

    Raises:
        InputError: The folder holds no run, or the run has not finished.
    """
    run_folder = RunFolder(folder)
    config = run_folder.read_config()
    recipe_class = RECIPES[config.recipe]
    result = read_result(run_folder, recipe_class.result_keys)
    return TrainedRun(run_folder, recipe_class(without_distributed_args(config), result))
