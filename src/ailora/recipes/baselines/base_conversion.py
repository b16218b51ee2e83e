"""Adapters whose start was taken out of the base weights, saved as adapters for the untouched base.

PiSSA and its like overwrite `W` by `W - s B0 A0`. What they learn is `s (B A - B0 A0)`, which is the LoRA of rank 2r
with `A = [A0; dA]`, `B = [dB, B]`, as in the forms of ours. PEFT's own conversion
(`path_initial_model_for_weight_conversion`) writes `[A; A0]`, `[B, -B0]`, whose two large terms cancel, and in PEFT
0.21 it loses heads and DoRA's magnitudes.
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


def write_start(model: PeftModel, folder: Path) -> None:
    """Write the factors `A0, B0` of a model that has not been trained."""
    folder.mkdir(parents=True, exist_ok=True)
    factors = {name: tensor for name, tensor in _state(model).items() if _A in name or _B in name}
    save_file(factors, folder / WEIGHTS_NAME, metadata={"format": "pt"})


def validate_same_anchor(model: PeftModel, folder: Path) -> None:
    """Refuse to go on from a checkpoint over a base that another start was taken out of.

    Raises:
        ModelError: the start `s B0 A0` is another one than when the run began, or nobody knows what it was.
    """
    if not (folder / WEIGHTS_NAME).is_file():
        raise ModelError(f"{folder} is missing, without which the run cannot go on: begin anew in another output")
    before, now = load_file(folder / WEIGHTS_NAME), _state(model)
    for name in filter(lambda name: _A in name, before):
        other = name.replace(_A, _B)
        # Another number of threads moves the product by rounding; other random numbers or batches move all of it.
        if anchor_distance(before[other] @ before[name], now[other] @ now[name]) is not None:
            raise ModelError(
                f"{name}: the start is not the one that this run began with, and was taken out of the base: continue "
                "it on the machine, with the libraries and the number of processes that began it, or begin anew"
            )


def save_converted(model: PeftModel, folder: Path, start: Path) -> None:
    """Write the adapter as a stock one for the untouched base, of twice the rank.

    Args:
        model: the trained model.
        folder: where the files go.
        start: the folder of `write_start`.
    """
    model.save_pretrained(str(folder))
    state, anchors = _state(model), load_file(start / WEIGHTS_NAME)
    for name in filter(lambda name: _A in name, anchors):
        other = name.replace(_A, _B)
        A0, B0, A, B = anchors[name], anchors[other], state[name], state[other]
        state[name], state[other] = stack_A(A0, A - A0), stack_B(B - B0, B)
    save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    file = folder / "adapter_config.json"
    config = read_json_object(file)
    write_json(file, config | _doubled(config))


def _doubled(config: dict[str, Any]) -> dict[str, Any]:
    """Twice the ranks with the same scalings; PEFT would start from the base's spectrum again where it is told how."""
    factor = math.sqrt(2) if config["use_rslora"] else 2
    return {
        "init_lora_weights": True,
        "corda_config": None,
        "lora_ga_config": None,
        "r": 2 * config["r"],
        "lora_alpha": factor * config["lora_alpha"],
        "rank_pattern": {name: 2 * rank for name, rank in config["rank_pattern"].items()},
        "alpha_pattern": {name: factor * alpha for name, alpha in config["alpha_pattern"].items()},
    }


def _state(model: PeftModel) -> dict[str, Tensor]:
    """What PEFT files of an adapter."""
    state = get_peft_model_state_dict(model)
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
