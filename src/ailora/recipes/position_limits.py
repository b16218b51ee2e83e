"""Maximum sequence lengths of a model, derived from its position embeddings."""

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
#: Names of modules and buffers with position embeddings: tables with a row per position.
_TABLE_NAMES = {"wpe", "position_embeddings", "position_embedding", "embed_positions", "positions_embed"}
#: Model type -> configuration key with the number of positions, where the table is neither a module nor a buffer.
_LENGTH_KEYS = {"ctrl": "n_positions", "mpt": "max_seq_len", "canine": "max_position_embeddings"}


@dataclass(frozen=True)
class PositionLimits:
    """Maximum sequence lengths of a model in tokens; None means unlimited.

    Attributes:
        max_input: Largest number of tokens in an input: a text, or the prompt for an encoder.
        max_output: Largest number of tokens in an output; without an encoder, equal to `max_input`.
        has_encoder: Whether the model has an encoder, with separate positions for input and output.
        context: Sequence length in pretraining of a model with rotary positions (RoPE); None for other models.
    """

    max_input: int | None = None
    max_output: int | None = None
    has_encoder: bool = False
    context: int | None = None

    @classmethod
    def from_model(cls, model: PreTrainedModel) -> PositionLimits:
        """Read the limits from the modules and configuration of a model.

        Args:
            model: Model, possibly on the meta device.

        Returns:
            The limits.
        """
        lengths = _find_table_lengths(model)
        text_config: Any = model.config.get_text_config()
        if not getattr(model.config, "is_encoder_decoder", False):
            limit = min(lengths.values(), default=None)
            is_rotary = limit is None and getattr(text_config, "rope_parameters", None)
            context = getattr(text_config, "max_position_embeddings", None) if is_rotary else None
            return cls(limit, limit, context=context)
        decoder_lengths = [length for name, length in lengths.items() if "decoder" in name]
        encoder_lengths = [length for name, length in lengths.items() if "decoder" not in name]
        return cls(min(encoder_lengths, default=None), min(decoder_lengths, default=None), has_encoder=True)

    def validate(self, lengths: Sequence[int], origins: Sequence[str], *, remedy: str, is_output: bool = False) -> None:
        """Validate that all rows fit into the model's positions.

        Args:
            lengths: Number of tokens of each row.
            origins: Location of each row for the error message, such as `file:line`.
            remedy: Setting to decrease, for the error message.
            is_output: Whether rows are outputs of the model instead of inputs.

        Raises:
            InputError: A row is too long. The message names the first long row, and the number of long rows.
        """
        limit = self.max_output if is_output else self.max_input
        too_long = [i for i, length in enumerate(lengths) if limit is not None and length > limit]
        if not too_long:
            return
        first = too_long[0]
        more = f" ({pluralize(len(too_long), 'row is', 'rows are')} too long)" if len(too_long) > 1 else ""
        raise InputError(
            f"{origins[first]}: {lengths[first]} tokens exceed the {limit} positions of the model{more}; decrease "
            f"{remedy}, or shorten the text"
        )

    def validate_generation(
        self, prompts: Sequence[Sequence[int]], origins: Sequence[str], generation: GenerationConfig
    ) -> None:
        """Validate that each prompt, with the longest possible completion, fits into the model's positions.

        Args:
            prompts: Token ids of each prompt.
            origins: Location of each prompt for the error message, such as `file:line`.
            generation: Generation configuration; `max_new_tokens` is the length of the longest completion.

        Raises:
            InputError: A completion, or a prompt with its completion, is too long.
        """
        max_new_tokens = max(generation.max_new_tokens or 1, 1)
        # The last generated token is never an input.
        generated_inputs = max_new_tokens - 1
        remedy = f"max_new_tokens from {max_new_tokens}"
        if self.has_encoder:
            # The inputs of the decoder are a start token and the generated tokens. The encoder reads only the prompt.
            self.validate([1 + generated_inputs], ["evaluation.generate"], remedy=remedy, is_output=True)
            generated_inputs = 0
        places = [f"{origin} with its completion" for origin in origins] if generated_inputs else origins
        self.validate([len(prompt) + generated_inputs for prompt in prompts], places, remedy=remedy)

    def warn_beyond_context(self, lengths: Sequence[int], *, key: str) -> None:
        """Warn about rows that are longer than the sequences in pretraining.

        Args:
            lengths: Number of tokens of each row.
            key: Configuration key with the maximum length of rows.
        """
        context = self.context
        if context is not None and (n_longer := sum(length > context for length in lengths)):
            _LOG.warning(
                "%s of %d training rows are longer than the %d tokens of pretraining (longest: %d): the model can "
                "compute further positions, but was not trained on them; set %s to truncate the rows",
                n_longer,
                len(lengths),
                context,
                max(lengths),
                key,
            )


def count_tokens(dataset: Dataset, column: str = "input_ids") -> list[int]:
    """Return the number of tokens in each tokenized row."""
    # Arrow stores the lengths. Counting in Python lists of all token ids is 300 times slower.
    return pc.call_function("list_value_length", [dataset.with_format("arrow")[:][column]]).to_pylist()


def _find_table_lengths(model: PreTrainedModel) -> dict[str, int]:
    """Return the number of positions in each table of position embeddings.

    Returns:
        Name of the module or buffer, or model type -> number of positions.
    """
    lengths: dict[str, int] = {}
    model_type = model.config.model_type
    if model_type in _LENGTH_KEYS and (length := getattr(model.config, _LENGTH_KEYS[model_type], None)):
        lengths[model_type] = length
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        # FSMT's tables, the modules with `make_weight`, grow for longer sequences.
        grows = hasattr(module, "make_weight")
        if name.rpartition(".")[2] in _TABLE_NAMES and isinstance(weight, Tensor) and not grows:
            lengths[name] = _count_usable_rows(model, module, len(weight))
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[2] in _TABLE_NAMES and buffer.ndim == 2:
            lengths[name] = len(buffer)
    return lengths


def _count_usable_rows(model: PreTrainedModel, table: object, rows: int) -> int:
    """Return the number of usable rows in a table of position embeddings; some models skip the first rows."""
    padding = getattr(table, "padding_idx", None)
    # BART and OPT skip `offset` rows, and the positions of RoBERTa begin after the padding row.
    offset = getattr(table, "offset", 0 if padding is None else padding + 1)
    return min(rows - offset, getattr(model.config.get_text_config(), "max_position_embeddings", None) or rows)
