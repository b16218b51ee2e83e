"""Tied weights and resized vocabularies of transformers' models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn
from transformers import PreTrainedModel

from ailora.errors import ModelError

_UNTYING = "give one of them a copy of the weight, set config.tie_word_embeddings to False, and save the model"


def get_tied_weights(model: nn.Module) -> dict[str, str]:
    """Return the names of a model's tied parameters, each with the name of the parameter that a checkpoint stores."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def find_tied_partner(model: nn.Module, parameter: str) -> str | None:
    """Return the name of a parameter that shares the weight of another, or None if the weight has one name."""
    ties = get_tied_weights(model)
    source = ties.get(parameter, parameter)
    sharing = [source, *(tied for tied, shared in ties.items() if shared == source)]
    return next((name for name in sharing if name != parameter), None)


def validate_untied(model: nn.Module, modules: Iterable[str]) -> None:
    """Refuse to merge an adapter into a tied weight: the module that shares the weight would change, too.

    Raises:
        ModelError: Names both parameters, and the way out.
    """
    for module in modules:
        if partner := find_tied_partner(model, f"{module}.weight"):
            raise ModelError(
                f"{module}.weight and {partner} share one weight, and the adapter changes {module} alone: use it "
                f"unmerged, or untie the base model before training ({_UNTYING})"
            )


def format_lone_training(parameter: str, partner: str) -> str:
    """Format the reason and the ways out for one of two tied parameters that was trained alone."""
    modules = [name.removesuffix(".weight").rpartition(".")[2] for name in (parameter, partner)]
    return (
        f"{parameter} and {partner} share one weight, and the adapter trained one of them: train both with "
        f"modules_to_save={modules}, or untie the base model before training ({_UNTYING})"
    )


def format_resize_hint(model: nn.Module, module: str, present: Sequence[int], expected: Sequence[int]) -> str:
    """Format the hint to resize a vocabulary, for the end of an error message.

    Args:
        model: base model.
        module: name of the module whose weight has another shape than the adapter.
        present: shape of the weight in the model, rows first.
        expected: shape of the weight that the adapter was trained with.

    Returns:
        The hint, or an empty text if the module is no embedding or differs in more than its rows.
    """
    if not isinstance(model, PreTrainedModel) or tuple(present)[1:] != tuple(expected)[1:]:
        return ""
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    if not any(model.get_submodule(module) is embedding for embedding in embeddings):
        return ""
    return f": the vocabulary was resized before training; model.resize_token_embeddings({expected[0]}) first"
