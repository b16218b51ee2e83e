"""Tied weights and resized vocabularies in models of transformers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn
from transformers import PreTrainedModel

from ailora.errors import ModelError

_UNTYING = "give each module a copy of the weight, set config.tie_word_embeddings to False, and save the model"


def get_tied_weights(model: nn.Module) -> dict[str, str]:
    """Return the tied parameters of a model, each mapped to the parameter stored in checkpoints."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def find_tied_partner(model: nn.Module, parameter: str) -> str | None:
    """Return the name of a parameter tied to `parameter`. None if the parameter is not tied."""
    ties = get_tied_weights(model)
    source = ties.get(parameter, parameter)
    tied_names = [source, *(tied for tied, shared in ties.items() if shared == source)]
    return next((name for name in tied_names if name != parameter), None)


def validate_untied(model: nn.Module, modules: Iterable[str]) -> None:
    """Refuse to merge an adapter into a tied weight, which would also change the tied module.

    Raises:
        ModelError: A weight is tied. The message names both parameters and a remedy.
    """
    for module in modules:
        if partner := find_tied_partner(model, f"{module}.weight"):
            raise ModelError(
                f"{module}.weight and {partner} share one weight, and the adapter changes {module} alone: use it "
                f"unmerged, or untie the base model before training ({_UNTYING})"
            )


def format_partly_trained_tie(parameter: str, partner: str) -> str:
    """Format the end of an error message for an adapter that trained only one of two tied parameters."""
    modules = [name.removesuffix(".weight").rpartition(".")[2] for name in (parameter, partner)]
    return (
        f"{parameter} and {partner} share one weight, but the adapter trained only one of them: train both with "
        f"modules_to_save={modules}, or untie the base model before training ({_UNTYING})"
    )


def format_resize_hint(model: nn.Module, module: str, present: Sequence[int], expected: Sequence[int]) -> str:
    """Format the hint to resize a vocabulary, for the end of an error message.

    Args:
        model: Base model.
        module: Name of the module with an unexpected shape.
        present: Shape of the weight in the model, rows first.
        expected: Shape of the weight during training of the adapter.

    Returns:
        The hint. Empty if the module is not an embedding, or if the shapes differ in more than the number of rows.
    """
    if not isinstance(model, PreTrainedModel) or tuple(present)[1:] != tuple(expected)[1:]:
        return ""
    try:
        embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    except NotImplementedError:  # models of audio or images have no vocabulary
        return ""
    if not any(model.get_submodule(module) is embedding for embedding in embeddings):
        return ""
    return f": the vocabulary was resized before training; call model.resize_token_embeddings({expected[0]}) first"
