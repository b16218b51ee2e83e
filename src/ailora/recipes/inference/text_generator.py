"""Generate texts with an adapter, or with the model of a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ailora.adapter_io.peft_adapter import load_peft_adapter
from ailora.adapter_io.peft_config_file import CONFIG_NAME, read_config
from ailora.errors import InputError, ModelError
from ailora.lora.base_model import get_base_model
from ailora.model_loading import default_device
from ailora.model_path import resolve_model
from ailora.path_kind import PathKind, detect_path_kind, resolve_adapter_dir
from ailora.plain_data import validate_plain_data
from ailora.plan.task_type import TaskType, parse_task_type
from ailora.recipes.data.language_rows import Row
from ailora.recipes.data.tokenize_language import Tokenization, prepare_tokenizer
from ailora.recipes.evaluation.text_generation import (
    build_generation_config,
    generate_texts,
    validate_no_max_length,
)
from ailora.recipes.language_model import LanguageRecipe
from ailora.recipes.position_limits import PositionLimits
from ailora.recipes.recipe import Model
from ailora.recipes.registry import load_run
from ailora.recipes.task_models import load_language_model, load_tokenizer, validate_finite

#: Prompts per batch.
_BATCH_SIZE = 8


@dataclass(frozen=True)
class TextGenerator:
    """Language model with its tokenizer, to generate texts from prompts.

    Attributes:
        model: Adapted or fully fine-tuned language model.
        tokenization: Tokenizer of the model, with settings for truncation.
    """

    model: Model
    tokenization: Tokenization

    @classmethod
    def load(cls, folder: Path | str, *, base: str | None = None) -> TextGenerator:
        """Load a model onto the accelerator, or onto the CPU if there is no accelerator.

        Args:
            folder: Folder of a finished run, or of an adapter.
            base: Base model of the adapter. None selects the base model named in the adapter's configuration.

        Returns:
            The generator.

        Raises:
            InputError: The folder holds neither a run nor an adapter, its files are damaged, or its model generates no
                texts.
        """
        # With a different base model, only the adapter of a run can be used.
        if base is not None or detect_path_kind(folder) is not PathKind.RUN:
            return cls(*_load_adapter(resolve_adapter_dir(folder), base))
        run = load_run(folder)
        if not isinstance(run.recipe, LanguageRecipe):
            raise InputError(f"{folder} is a run of the recipe {run.recipe.config.recipe}, which generates no texts")
        return cls(run.load(), run.recipe.tokenization)

    def generate(self, prompts: Sequence[str], fields: Mapping[str, Any], *, chat: bool = False) -> list[str]:
        """Generate a completion of each prompt.

        Args:
            prompts: Non-empty prompts.
            fields: Fields of `transformers.GenerationConfig`.
            chat: Whether to format each prompt as a user's message with the chat template of the tokenizer.

        Returns:
            Completions in the order of the prompts, without leading and trailing whitespace.

        Raises:
            InputError: A prompt is empty, too long for the model or not valid Unicode, a field is invalid, or `chat` is
                set and the tokenizer has no chat template.
        """
        if empty := [number for number, prompt in enumerate(prompts, start=1) if not prompt]:
            raise InputError(f"prompt {empty[0]} is empty")
        # Tokenizers crash on lone surrogates, in which Python stores command-line bytes that are not valid UTF-8.
        validate_plain_data(list(prompts), "prompts")
        tokenizer = self.tokenization.tokenizer
        if chat and not tokenizer.chat_template:
            raise InputError(
                "the tokenizer has no chat template; omit --chat to complete the prompt without a template"
            )
        validate_no_max_length(fields)
        config = build_generation_config(fields, tokenizer, chat=chat)
        origins = [f"prompt {number}" for number in range(1, len(prompts) + 1)]
        rows = [
            Row(origin, [{"role": "user", "content": prompt}] if chat else prompt, completion="", values={})
            for origin, prompt in zip(origins, prompts, strict=True)
        ]
        prompt_ids = [self.tokenization.encode_prompt(row) for row in rows]
        base: Any = get_base_model(self.model)
        PositionLimits.from_model(base).validate_generation(prompt_ids, origins, config)
        return [
            text.strip()
            for text in generate_texts(self.model, tokenizer, prompt_ids, config=config, batch_size=_BATCH_SIZE)
        ]


def _load_adapter(folder: Path, base: str | None) -> tuple[Model, Tokenization]:
    config = read_config(folder / CONFIG_NAME)
    task_type = config.get("task_type")
    base = base or config.get("base_model_name_or_path")
    if task_type not in (TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM, None):
        raise InputError(f"{folder} is an adapter for {task_type}, which generates no texts")
    if not base:
        raise InputError(f"{folder} does not name its base model; set the base model with --base")
    tokenizer = load_tokenizer(base)
    prepare_tokenizer(tokenizer, name=base)
    # PEFT allows adapters without a task type. Most language models are causal.
    task_type = parse_task_type(task_type or TaskType.CAUSAL_LM)
    model: Any = load_language_model(resolve_model(base), tokenizer, task_type)
    try:
        adapted = load_peft_adapter(model, folder)
    except (InputError, ModelError, SafetensorError) as error:
        raise InputError(f"cannot load the adapter {folder} on {base}: {error}") from error
    validate_finite(adapted, folder)
    return adapted.to(default_device()), Tokenization(tokenizer)
