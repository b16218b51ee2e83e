"""Convert adapters trained on overwritten base weights into adapters for the pretrained weights.

PiSSA and similar inits overwrite `W` with `W - s B0 A0`. The learned update `s (B A - B0 A0)` is a LoRA of rank 2r with
the factors `[A0; dA]` and `[dB, B]`, where `dA = A - A0` and `dB = B - B0`. Saved adapters of the anchored form stack
their factors in the same way.
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
from ailora.lora.anchor import compute_anchor_distance, stack_A, stack_B
from ailora.plain_data import read_json_object

_A, _B = ".lora_A.", ".lora_B."


def write_initial_factors(model: PeftModel, folder: Path) -> None:
    """Write the initial factors `A0, B0` of a model before training.

    Args:
        model: Adapted model.
        folder: Folder to write to, created if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    factors = {name: tensor for name, tensor in _state_dict(model).items() if _A in name or _B in name}
    save_file(factors, folder / WEIGHTS_NAME, metadata={"format": "pt"})


def validate_same_anchor(model: PeftModel, folder: Path) -> None:
    """Validate that a resumed run subtracts the same `s B0 A0` from the base weights as when it began.

    Args:
        model: Adapted model before training.
        folder: Folder written by `write_initial_factors`.

    Raises:
        ModelError: The products of the initial factors differ, or the folder holds no factors.
    """
    if not (folder / WEIGHTS_NAME).is_file():
        raise ModelError(
            f"{folder / WEIGHTS_NAME} is missing, and the run cannot resume without this file; start the run again in "
            "a new output folder"
        )
    initial_factors, state = load_file(folder / WEIGHTS_NAME), _state_dict(model)
    for name_A in filter(lambda name: _A in name, initial_factors):
        name_B = name_A.replace(_A, _B)
        # A different number of threads changes the product only by rounding, for which the distance is None. Different
        # random numbers or batches give an entirely different product.
        initial_product = initial_factors[name_B] @ initial_factors[name_A]
        if compute_anchor_distance(initial_product, state[name_B] @ state[name_A]) is not None:
            raise ModelError(
                f"{name_A}: the initial factors differ from those that the run subtracted from the base when it began; "
                "resume with the same machine, libraries and number of processes, or start the run again in a new "
                "output folder"
            )


def save_converted(model: PeftModel, folder: Path, initial: Path) -> None:
    """Save a trained adapter as a stock LoRA of twice the rank for the pretrained base.

    Args:
        model: Trained model.
        folder: Folder to write to.
        initial: Folder written by `write_initial_factors`.
    """
    # PEFT's own conversion (path_initial_model_for_weight_conversion) writes [A; A0] and [B, -B0], so two large terms
    # cancel, and rounding errors grow. In PEFT 0.21, this conversion also loses heads and DoRA magnitudes.
    model.save_pretrained(str(folder))
    initial_factors, state = load_file(initial / WEIGHTS_NAME), _state_dict(model)
    for name_A in filter(lambda name: _A in name, initial_factors):
        name_B = name_A.replace(_A, _B)
        A0, B0, A, B = initial_factors[name_A], initial_factors[name_B], state[name_A], state[name_B]
        state[name_A], state[name_B] = stack_A(A0, A - A0), stack_B(B - B0, B)
    save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    file = folder / "adapter_config.json"
    config = read_json_object(file)
    write_json(file, config | _double_rank(config))


def _double_rank(config: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a LoRA configuration that double the rank and keep the scaling."""
    # The scaling is alpha / r, or alpha / sqrt(r) with rsLoRA.
    factor = math.sqrt(2) if config["use_rslora"] else 2
    return {
        # With the name of the init, PEFT would overwrite the base weights whenever the adapter is loaded.
        "init_lora_weights": True,
        "corda_config": None,
        "lora_ga_config": None,
        "r": 2 * config["r"],
        "lora_alpha": factor * config["lora_alpha"],
        "rank_pattern": {name: 2 * rank for name, rank in config["rank_pattern"].items()},
        "alpha_pattern": {name: factor * alpha for name, alpha in config["alpha_pattern"].items()},
    }


def _state_dict(model: PeftModel) -> dict[str, Tensor]:
    """Return CPU copies of the adapter's tensors, under their names in PEFT's adapter file."""
    state = get_peft_model_state_dict(model)
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
