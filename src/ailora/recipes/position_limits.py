"""Maximum lengths of sequences, from the position embeddings of a model without weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from ailora.errors import InputError
from ailora.formatting import pluralize

_LOG = logging.getLogger("ailora")
#: Names of position embeddings in the model families: tables with a row per position.
_TABLES = {"wpe", "position_embeddings", "position_embedding", "embed_positions", "positions_embed"}

#: Families whose table is neither a module nor a buffer -> the key of the configuration with its length.
_STATED = {"ctrl": "n_positions", "mpt": "max_seq_len", "canine": "max_position_embeddings"}


@dataclass(frozen=True)
class PositionLimits:
    """Maximum lengths of a model's sequences in tokens; None without a limit.

    Attributes:
        reads: positions for the input: a text, or the prompt of an encoder.
        writes: positions for the output; the same as `reads` without an encoder.
        encodes: whether the model has an encoder, and the output has positions of its own.
        context: length of the sequences in pretraining, if positions are computed and not embedded (RoPE).
    """

    reads: int | None = None
    writes: int | None = None
    encodes: bool = False
    context: int | None = None

    @classmethod
    def from_model(cls, model: PreTrainedModel) -> PositionLimits:
        """Read the limits from the modules and the configuration of a model.

        Args:
            model: model, possibly on the meta device.

        Returns:
            The limits.
        """
        lengths = _table_lengths(model)
        text: Any = model.config.get_text_config()
        if not getattr(model.config, "is_encoder_decoder", False):
            reads = min(lengths.values(), default=None)
            rotary = reads is None and getattr(text, "rope_parameters", None)
            return cls(reads, reads, context=getattr(text, "max_position_embeddings", None) if rotary else None)
        decoder = [length for name, length in lengths.items() if "decoder" in name]
        encoder = [length for name, length in lengths.items() if "decoder" not in name]
        return cls(min(encoder, default=None), min(decoder, default=None), encodes=True)

    def validate(self, lengths: Sequence[int], origins: Sequence[str], *, remedy: str, written: bool = False) -> None:
        """Validate that all rows fit into the model's positions.

        Args:
            lengths: number of tokens of each row.
            origins: `file:line` of each row.
            remedy: key of the configuration that truncates rows.
            written: whether rows are outputs of the model, not inputs.

        Raises:
            InputError: Names the first row that is too long, and the number of such rows.
        """
        limit = self.writes if written else self.reads
        longer = [number for number, length in enumerate(lengths) if limit is not None and length > limit]
        if not longer:
            return
        first = longer[0]
        more = f" ({pluralize(len(longer), 'row is', 'rows are')} longer than that)" if len(longer) > 1 else ""
        raise InputError(
            f"{origins[first]}: {lengths[first]} tokens, and the model has {limit} positions{more}: set {remedy} "
            "lower, so that none is longer, or shorten the text"
        )

    def validate_generation(
        self, prompts: Sequence[Sequence[int]], origins: Sequence[str], generation: GenerationConfig
    ) -> None:
        """Validate that prompts with their longest completions fit into the model's positions.

        Args:
            prompts: token ids of each prompt.
            origins: `file:line` of each prompt.
            generation: parameters with the maximum number of new tokens.

        Raises:
            InputError: Names the prompt or the number of new tokens.
        """
        # The last generated token is never an input.
        new = max((generation.max_new_tokens or 1) - 1, 0)
        remedy = f"max_new_tokens (it is {new + 1})"
        if self.encodes:
            self.validate([new + 1], ["evaluation.generate"], remedy=remedy, written=True)
            new = 0
        places = [f"{place} with what is generated" for place in origins] if new else origins
        self.validate([len(prompt) + new for prompt in prompts], places, remedy=remedy)

    def warn_beyond_context(self, lengths: Sequence[int], *, key: str) -> None:
        """Warn of rows that are longer than the sequences in pretraining.

        Args:
            lengths: number of tokens of each row.
            key: key of the configuration that truncates rows.
        """
        context = self.context
        if context is not None and (longer := sum(length > context for length in lengths)):
            _LOG.warning(
                "%s of %d training rows have more than the %d tokens that the model was made for (the longest %d): it "
                "computes positions of any number, but never learned these; %s cuts them",
                *(longer, len(lengths), context, max(lengths), key),
            )


def lengths_of(dataset: Dataset, column: str = "input_ids") -> list[int]:
    """Return the numbers of tokens of tokenized rows."""
    # Arrow stores the lengths; building lists of all token ids in Python is 300 times as slow.
    return pc.call_function("list_value_length", [dataset.with_format("arrow")[:][column]]).to_pylist()


def _table_lengths(model: PreTrainedModel) -> dict[str, int]:
    """Return the number of positions of each table of a model, by the name of its module or buffer."""
    lengths: dict[str, int] = {}
    if stated := getattr(model.config, _STATED.get(model.config.model_type, ""), None):
        lengths[model.config.model_type] = stated
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        # Modules with `make_weight` extend their table when a sequence is longer.
        if name.rpartition(".")[2] in _TABLES and isinstance(weight, Tensor) and not hasattr(module, "make_weight"):
            lengths[name] = _usable_rows(model, module, len(weight))
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[2] in _TABLES and buffer.ndim == 2:
            lengths[name] = len(buffer)
    return lengths


def _usable_rows(model: PreTrainedModel, table: object, rows: int) -> int:
    """Return the number of usable positions of a table, whose first rows some families leave out."""
    padding = getattr(table, "padding_idx", None)
    # Tables of BART and OPT have an offset; positions of RoBERTa begin after the row of padding.
    offset = getattr(table, "offset", 0 if padding is None else padding + 1)
    return min(rows - offset, getattr(model.config.get_text_config(), "max_position_embeddings", None) or rows)
