"""Adapt planned projections with PEFT's own inits: `adapter.policy: peft:NAME`.

The names are values of `LoraConfig.init_lora_weights` in PEFT 0.21, and `lora` for PEFT's default, True.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from itertools import chain, islice, repeat
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig, EvaConfig, LoraGAConfig
from peft.tuners.lora.eva import (
    prepare_layer_inputs_fn_language_modeling,
    prepare_model_inputs_fn_language_modeling,
)
from peft.tuners.lora.loraga import preprocess_loraga
from torch import Tensor
from transformers import PreTrainedModel

from ailora.errors import AiloraError, InputError, ModelError
from ailora.lora.lora_config import build_lora_config
from ailora.lora.parallelism_support import validate_parallelism
from ailora.plan import Plan
from ailora.recipes.baselines.adapter_origin import AdapterOrigin, set_adapter_origin
from ailora.recipes.baselines.calibration_batches import Batches
from ailora.recipes.config.method import PeftInit
from ailora.recipes.config.schema import AdapterConfig, RunConfig
from ailora.weights.base_weight import BaseWeight, resolve_weights

#: First words of warnings on which users cannot act. PEFT warns that EVA could use less memory, and torch warns that
#: LoRA-GA computes gradients of weights but not of inputs.
_IGNORED_WARNINGS = (
    "lora with eva initialization used with low_cpu_mem_usage",
    "Full backward hook is firing when gradients",
)
#: Number of training rows that CorDA and LoRA-GA read, as in CorDA's paper (arXiv 2406.05223). Datasets with fewer
#: rows are read once.
_CALIBRATION_ROWS = 256
#: Largest number of batches that EVA reads until its directions converge.
_MAX_EVA_BATCHES = 1000


def validate_options(init: PeftInit, adapter: AdapterConfig) -> None:
    """Validate the keys of `adapter:` against the requirements of a PEFT init.

    Args:
        init: The PEFT init.
        adapter: Section `adapter:` of the configuration.

    Raises:
        InputError: A key does not apply to the init, PEFT refuses the rank, or a package is missing.
    """
    name = init.name
    if name == "corda" and find_spec("attr") is None:
        raise InputError(
            f"adapter.policy peft:corda needs the package attrs, which PEFT {peft.__version__} imports but does not "
            "install: pip install attrs"
        )
    # `anchored` is the default of `adapter.form`, so the user has set another form.
    if adapter.form != "anchored":
        raise InputError(
            f"adapter.form {adapter.form!r} cannot be combined with {init}, whose adapters PEFT always trains in the "
            "stock form: leave out adapter.form"
        )
    if adapter.couple_roles:
        raise InputError(
            f"adapter.couple_roles cannot be combined with {init}: PEFT always trains all rows of a fused weight"
        )
    if name == "mica" and adapter.dora:
        raise InputError("adapter.dora cannot be combined with peft:mica: PEFT does not support the combination")
    if name == "eva" and isinstance(adapter.rank, dict):
        raise InputError(
            "adapter.rank must be a single number for peft:eva, got a mapping: PEFT's EVA requires the same rank in "
            "all modules with the same input"
        )
    if name == "orthogonal" and isinstance(adapter.rank, int) and adapter.rank % 2:
        raise InputError(f"adapter.rank must be even for peft:orthogonal, got {adapter.rank}")


def apply_peft_init(
    init: PeftInit,
    config: RunConfig,
    model: PreTrainedModel,
    plan: Plan,
    *,
    make_loader: Callable[[PreTrainedModel | PeftModel], Any],
) -> PeftModel:
    """Adapt every planned projection with a PEFT init.

    Args:
        init: The PEFT init.
        config: Configuration of the run.
        model: Base model.
        plan: Projections with their ranks and scalings.
        make_loader: Function that builds the data loader of training batches for a model.

    Returns:
        The adapted model.

    Raises:
        ModelError: The init cannot adapt the model. If PEFT raised an exception, it is chained as the cause.
    """
    weights = resolve_weights(model, plan.modules)
    validate_parallelism(model, plan, weights)
    if init.overwrites_base:
        _validate_untied(weights, init)
    if init.name == "olora":
        _validate_not_transposed(weights)
    try:
        with warnings.catch_warnings():
            for message in _IGNORED_WARNINGS:
                warnings.filterwarnings("ignore", message, UserWarning)
            adapted = _adapt_by_peft(
                init, config.recipe, model, build_lora_config(plan, model), make_loader=make_loader
            )
    except AiloraError:
        raise
    except Exception as error:
        raise ModelError(
            f"adapter.policy {init}: PEFT {peft.__version__} cannot adapt {type(model).__name__}: "
            f"{type(error).__name__}: {error}"
        ) from error
    set_adapter_origin(adapted, AdapterOrigin(plan, init.overwrites_base))
    return adapted


def _validate_untied(weights: Mapping[str, BaseWeight], init: PeftInit) -> None:
    first_modules: dict[int, str] = {}
    for module, weight in weights.items():
        first = first_modules.setdefault(weight.key, module)
        if first != module:
            raise ModelError(
                f"adapter.policy {init}: {first} and {module} share a weight, which PEFT would overwrite twice"
            )


def _validate_not_transposed(weights: Mapping[str, BaseWeight]) -> None:
    for module, weight in weights.items():
        if weight.transposed:
            raise ModelError(
                f"adapter.policy peft:olora: {module} stores its weight as (in, out), but OLoRA in "
                f"PEFT {peft.__version__} expects (out, in)"
            )


def _adapt_by_peft(
    init: PeftInit,
    recipe: str,
    model: PreTrainedModel,
    lora_config: LoraConfig,
    *,
    make_loader: Callable[[PreTrainedModel | PeftModel], Any],
) -> PeftModel:
    lora_config.init_lora_weights = True if init.name == "lora" else init.name  # type: ignore[assignment]
    if init.name == "corda":
        lora_config.corda_config = CordaConfig()
        # Imported only for CorDA, because the module needs attrs, which PEFT does not install.
        corda = import_module("peft.tuners.lora.corda")
        rows = _unpad_rows(_limit_rows(Batches(lambda: make_loader(model))))
        corda.preprocess_corda(model, lora_config, run_model=lambda: _run_forward(model, rows))
    if init.name == "lora_ga":
        lora_config.lora_ga_config = LoraGAConfig()
        batches = Batches(lambda: make_loader(model))
        preprocess_loraga(model, lora_config, train_step=lambda: _run_backward(model, _limit_rows(batches)))
    if init.name == "eva":
        # rho=1 keeps the planned ranks. If EVA moved ranks between modules, a comparison with other inits would also
        # compare different numbers of parameters. The label mask limits EVA to tokens in the loss. Only causal_lm can
        # use the mask, because in other recipes input tokens have no labels.
        lora_config.eva_config = EvaConfig(rho=1.0, use_label_mask=recipe == "causal_lm")
    adapted = get_peft_model(model, lora_config)
    assert isinstance(adapted, PeftModel)
    if init.name == "eva":
        # PEFT drops masked tokens from the inputs of layers, with the same mask for all layers. In an encoder-decoder,
        # the mask fits the tokens of the encoder, but not those of the decoder.
        masks_inputs = recipe != "seq2seq"
        initialize_lora_eva_weights(
            adapted,
            _RepeatedBatches(Batches(lambda: make_loader(adapted))),
            prepare_model_inputs_fn=prepare_model_inputs_fn_language_modeling if masks_inputs else None,
            prepare_layer_inputs_fn=prepare_layer_inputs_fn_language_modeling if masks_inputs else None,
            show_progress_bar=False,
        )
    return adapted


class _RepeatedBatches:
    """Batches of the first epoch, repeated until EVA has converged."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # EVA reads batches until its directions converge, and convergence is not guaranteed.
        yield from islice(chain.from_iterable(repeat(self.batches)), _MAX_EVA_BATCHES)
        raise ModelError(
            f"adapter.policy peft:eva: EVA's directions did not converge in {_MAX_EVA_BATCHES} batches, perhaps "
            "because batches have fewer tokens than the rank; use larger batches or a smaller rank"
        )


def _limit_rows(batches: Batches) -> Iterator[dict[str, Any]]:
    """Yield batches until they hold at least `_CALIBRATION_ROWS` rows."""
    rows = 0
    for batch in batches:
        if rows >= _CALIBRATION_ROWS:
            return
        rows += len(batch["labels"])
        yield batch


def _unpad_rows(batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Tensor]]:
    """Yield each row as a batch without padding."""
    # PEFT computes CorDA's covariance from single rows, and would count padding as data.
    for batch in batches:
        for row in range(len(batch["input_ids"])):
            row_batch = {key: value[row : row + 1] for key, value in batch.items() if isinstance(value, Tensor)}
            mask = row_batch.get("attention_mask")
            if mask is not None:
                kept, width = mask[0].bool(), mask.shape[1]
                # Only tensors as wide as the mask are padded; class labels have shape (1,).
                row_batch = {
                    key: value[:, kept] if value.shape[1:2] == (width,) else value for key, value in row_batch.items()
                }
            yield row_batch


def _run_forward(model: PreTrainedModel, batches: Iterator[dict[str, Any]]) -> None:
    for batch in batches:
        model(**batch)


def _run_backward(model: PreTrainedModel, batches: Iterator[dict[str, Any]]) -> None:
    for batch in batches:
        loss = model(**batch).loss
        assert isinstance(loss, torch.Tensor)
        loss.backward()
