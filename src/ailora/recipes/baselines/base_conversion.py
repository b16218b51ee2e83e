"""Convert adapters whose init was subtracted from the base weights into adapters for the unchanged base.

PiSSA and similar inits overwrite `W` by `W - s B0 A0`. The learned update is `s (B A - B0 A0)`: the LoRA of rank 2r
with `A = [A0; dA]`, `B = [dB, B]`, as in files of the anchored form.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from ailora.adapter_io.peft_config_file import WEIGHTS_NAME
from ailora.atomic_io import write_json
from ailora.errors import ModelError
from ailora.lora.anchor import anchor_distance, stack_A, stack_B
from ailora.plain_data import read_json_object

_A, _B = ".lora_A.", ".lora_B."


def write_initial_factors(model: PeftModel, folder: Path) -> None:
    """Write the initial factors `A0, B0` of a model that has not been trained.

    Args:
        model: adapted model.
        folder: folder to write to, created if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    factors = {name: tensor for name, tensor in _state_dict(model).items() if _A in name or _B in name}
    save_file(factors, folder / WEIGHTS_NAME, metadata={"format": "pt"})


def validate_same_anchor(model: PeftModel, folder: Path) -> None:
    """Validate that a resumed run subtracts the same `s B0 A0` from the base as when it began.

    Args:
        model: adapted model, not trained.
        folder: folder of `write_initial_factors`.

    Raises:
        ModelError: The initial factors differ, or the folder holds none.
    """
    if not (folder / WEIGHTS_NAME).is_file():
        raise ModelError(f"{folder} is missing, without which the run cannot resume: begin anew in another output")
    initial, state = load_file(folder / WEIGHTS_NAME), _state_dict(model)
    for name in filter(lambda name: _A in name, initial):
        other = name.replace(_A, _B)
        # Another number of threads moves the product by rounding; other random numbers or batches move all of it.
        if anchor_distance(initial[other] @ initial[name], state[other] @ state[name]) is not None:
            raise ModelError(
                f"{name}: the start is not the one that this run began with, and was taken out of the base: continue "
                "it on the machine, with the libraries and the number of processes that began it, or begin anew"
            )


def save_converted(model: PeftModel, folder: Path, initial: Path) -> None:
    """Save a trained adapter as a stock LoRA of twice the rank for the unchanged base.

    Args:
        model: trained model.
        folder: folder to write to.
        initial: folder of `write_initial_factors`.
    """
    # PEFT's own conversion (path_initial_model_for_weight_conversion) writes [A; A0], [B, -B0], whose two large terms
    # cancel, and in PEFT 0.21 loses heads and DoRA's magnitudes.
    model.save_pretrained(str(folder))
    state, anchors = _state_dict(model), load_file(initial / WEIGHTS_NAME)
    for name in filter(lambda name: _A in name, anchors):
        other = name.replace(_A, _B)
        A0, B0, A, B = anchors[name], anchors[other], state[name], state[other]
        state[name], state[other] = stack_A(A0, A - A0), stack_B(B - B0, B)
    save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    file = folder / "adapter_config.json"
    config = read_json_object(file)
    write_json(file, config | _double_rank(config))


def _double_rank(config: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a LoRA's configuration that change with the rank, for the same scaling."""
    # The scaling is alpha / r, or alpha / sqrt(r) with rsLoRA.
    factor = math.sqrt(2) if config["use_rslora"] else 2
    return {
        # With the name of its init, PEFT would overwrite the base on loading, too.
        "init_lora_weights": True,
        "corda_config": None,
        "lora_ga_config": None,
        "r": 2 * config["r"],
        "lora_alpha": factor * config["lora_alpha"],
        "rank_pattern": {name: 2 * rank for name, rank in config["rank_pattern"].items()},
        "alpha_pattern": {name: factor * alpha for name, alpha in config["alpha_pattern"].items()},
    }


def _state_dict(model: PeftModel) -> dict[str, Tensor]:
    """Return the tensors that PEFT saves of an adapter, on the CPU."""
    state = get_peft_model_state_dict(model)
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
