"""Save the trained model of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import Trainer

from ailora.adapter_io import save_adapter
from ailora.adapter_io.adapter_digests import write_digests
from ailora.distributed import is_main, wait_for_everyone
from ailora.lora.inject import has_ailora_adapter
from ailora.recipes.baselines.adapter_origin import get_adapter_origin
from ailora.recipes.baselines.base_conversion import save_converted
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.run_folder import RunFolder
from ailora.safetensors_io.tensor_digest import write_tensor_digest
from ailora.weights.dtensor import any_dtensor


def save_model(config: RunConfig, trainer: Trainer) -> Path:
    """Write an adapter to `adapter/`, or a fully fine-tuned model to `model/`.

    All ranks must call this function together.

    Args:
        config: Configuration of the run.
        trainer: Trainer with the trained model.

    Returns:
        The written folder.
    """
    folder = RunFolder(config.output)
    model: Any = trainer.model
    sharded = any_dtensor(model.parameters())

    def write_adapter(path: Path) -> None:
        if has_ailora_adapter(model):
            # All ranks take part in gathering shards.
            if sharded or is_main():
                save_adapter(model, path)
        elif is_main():
            # PiSSA and similar inits overwrite base weights, so their factors alone do not fit the pretrained base.
            # Combined with the initial factors in `folder.initial`, they do.
            if get_adapter_origin(model).overwrites_base:
                save_converted(model, path, folder.initial)
            else:
                model.save_pretrained(str(path))
            write_digests(path)

    def write_model(path: Path) -> None:
        state = trainer.accelerator.get_state_dict(model) if sharded else None
        if is_main():
            model.save_pretrained(path, state_dict=state)
            for file in path.glob("*.safetensors"):
                write_tensor_digest(file)

    with_adapter = isinstance(model, PeftModel)
    target = folder.adapter if with_adapter else folder.model
    folder.write_folder(target, write_adapter if with_adapter else write_model)
    wait_for_everyone()
    return target


def safetensors_bytes(folder: Path) -> int:
    """Return the total size of the safetensors files in a folder, in bytes."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
