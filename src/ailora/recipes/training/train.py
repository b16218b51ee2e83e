"""Train the model of a run of any recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

from peft import PeftModel
from transformers import ProgressCallback, TrainerCallback, TrainerState

from ailora.distributed import is_main, wait_for_everyone
from ailora.errors import InputError
from ailora.lora.inject import get_metadata, has_ailora_adapter
from ailora.plan import METADATA_NAME
from ailora.recipes.baselines.adapter_origin import get_adapter_origin
from ailora.recipes.baselines.base_conversion import validate_same_anchor, write_initial_factors
from ailora.recipes.config.sections import RunConfig
from ailora.recipes.recipe import Model, Recipe
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.training.callbacks import ProgressBar, RunLog
from ailora.recipes.training.divergence import DivergenceCheck
from ailora.recipes.training.results import TrainResult
from ailora.recipes.training.trainer_checkpoints import read_train_seconds


def train(
    recipe: Recipe[RunConfig], model: Model, *, init_seconds: float, callbacks: Sequence[TrainerCallback] = ()
) -> TrainResult:
    """Train a run to its end, resuming from its newest checkpoint if there is one.

    Args:
        recipe: Recipe of the run, which has claimed its output folder.
        model: Model from `load_and_adapt`.
        init_seconds: Duration of `load_and_adapt`, in seconds.
        callbacks: Further callbacks for the Trainer.

    Returns:
        The trained model and the durations.

    Raises:
        InputError: The Trainer refuses an argument, or the checkpoint contains pickled weights or objects.
        ModelError: The run began with initial factors that differ from those of the model.
    """
    folder = RunFolder(recipe.config.output)
    checkpoint = _find_newest_checkpoint(folder)
    if checkpoint:
        _validate_no_pickled_weights(checkpoint)
    _write_initial_state(folder, model, resumed=checkpoint is not None)
    seconds_before = read_train_seconds(checkpoint) if checkpoint else 0.0
    final_state = _load_final_state(checkpoint)
    # The training steps are complete, but the run was interrupted afterwards, for example during the evaluation.
    if checkpoint and final_state:
        model = _load_weights(model, _find_best_checkpoint(recipe, final_state) or checkpoint)
    # The history in the checkpoint already contains the evaluation before training.
    recipe.arguments.eval_on_start = recipe.arguments.eval_on_start and checkpoint is None
    try:
        trainer = recipe.make_trainer(model, recipe.arguments)
    # Only the Trainer's constructor detects some unsupported arguments and missing packages.
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"training: {error}") from error
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ProgressBar)
    log = RunLog(folder, seconds_before)
    # The divergence check comes after the log, because `RunLog` decides at which steps checkpoints are saved.
    checks = [DivergenceCheck(trainer, folder)] if recipe.config.on_nonfinite == "stop" else []
    for callback in (log, *checks, *callbacks):
        trainer.add_callback(callback)
    if final_state:
        trainer.state = final_state
        return TrainResult(trainer, init_seconds, seconds_before)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except UnpicklingError as error:
        # The states of the optimizer and the random generators are pickles. torch refuses pickles that would run code.
        raise InputError(
            f"{checkpoint} contains pickled objects other than tensors and plain values, which are never loaded: "
            f"delete the folder if this run is not yours ({error})"
        ) from None
    return TrainResult(trainer, init_seconds, log.train_seconds)


def _validate_no_pickled_weights(checkpoint: Path) -> None:
    """Refuse a checkpoint with pickled weights, which the Trainer would load instead of the safetensors files."""
    for name in ("adapter_model.bin", "pytorch_model.bin", "pytorch_model.bin.index.json"):
        if (checkpoint / name).exists():
            raise InputError(
                f"{checkpoint / name} contains pickled weights, which are never loaded; no run writes such a file: "
                "delete it"
            )


def _write_initial_state(folder: RunFolder, model: Model, *, resumed: bool) -> None:
    """Write the metadata of an ailora adapter, or the initial factors that the conversion of other adapters needs."""
    if has_ailora_adapter(model):
        if is_main():
            folder.claim(folder.path / METADATA_NAME)
            get_metadata(model).write(folder.path)
    elif isinstance(model, PeftModel) and get_adapter_origin(model).overwrites_base:
        # All ranks start from the initial factors of the main rank, so only the main rank compares or writes them.
        if resumed and is_main():
            validate_same_anchor(model, folder.initial)
        elif not resumed:
            folder.write_folder(folder.initial, lambda path: write_initial_factors(model, path) if is_main() else None)


def _find_newest_checkpoint(folder: RunFolder) -> Path | None:
    """Find the newest checkpoint, which must be the same on all ranks (processes)."""
    # The main rank goes first: it removes incomplete checkpoints, and the other ranks must not find these.
    newest = folder.find_newest_checkpoint() if is_main() else None
    wait_for_everyone()
    return newest if is_main() else folder.find_newest_checkpoint()


def _load_final_state(checkpoint: Path | None) -> TrainerState | None:
    """Load the trainer state if a checkpoint is from the last step of the run. Return None if steps are left."""
    # The Trainer cannot resume from such a checkpoint: it would train one step too many.
    if checkpoint is None:
        return None
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return state if state.global_step >= state.max_steps else None


def _find_best_checkpoint(recipe: Recipe[RunConfig], state: TrainerState) -> Path | None:
    """Find the checkpoint to load at the end of training. None without `load_best_model_at_end`."""
    if not recipe.arguments.load_best_model_at_end or state.best_model_checkpoint is None:
        return None
    # Use only the name in the stored path: the path is wrong if the folder of the run has been moved.
    best = RunFolder(recipe.config.output).checkpoints / Path(state.best_model_checkpoint).name
    return best if best.is_dir() else None


def _load_weights(model: Model, checkpoint: Path) -> Model:
    if isinstance(model, PeftModel):
        model.load_adapter(str(checkpoint), "default", is_trainable=True)
        return model
    # `from_pretrained` makes all parameters trainable.
    requires_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    loaded = type(model).from_pretrained(checkpoint, trust_remote_code=False, use_safetensors=True)
    for name, parameter in loaded.named_parameters():
        parameter.requires_grad_(requires_grad.get(name, True))
    return loaded
