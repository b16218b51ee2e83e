"""Write with an adapter, or with the model of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from ailora.adapter_io.peft_config_file import CONFIG_NAME, read_config
from ailora.errors import InputError
from ailora.model_loading import resolve_model
from ailora.path_kind import PathKind, detect_path_kind, resolve_adapter_dir
from ailora.plan.task_type import TaskType, parse_task_type
from ailora.recipes.config.schema import LanguageConfig
from ailora.recipes.data.language_rows import Row
from ailora.recipes.data.tokenize_language import Tokenization, complete_tokenizer
from ailora.recipes.evaluation.text_generation import generate, generation_config
from ailora.recipes.inference.language_run import FinishedLanguageModel
from ailora.recipes.run_folder import RunFolder
from ailora.recipes.task_models import load_language_model, load_tokenizer


@dataclass(frozen=True)
class Writer:
    """A model that writes.

    Attributes:
        model: with its adapter.
        tokenization: how prompts become tokens.
    """

    model: Any
    tokenization: Tokenization

    @classmethod
    def load(cls, folder: Path | str, *, base: str | None = None) -> Writer:
        """The model of a folder.

        Args:
            folder: of a finished run, or of an adapter.
            base: the base model of an adapter; None: the one that the adapter names.

        Raises:
            InputError: the folder holds neither, or no language model's.
        """
        if detect_path_kind(folder) is PathKind.RUN and base is None:
            run = RunFolder(folder)
            config = run.read_config()
            if not isinstance(config, LanguageConfig):
                raise InputError(f"{folder} is a run of the recipe {config.recipe}, which writes no texts")
            finished = FinishedLanguageModel(run, config)
            return cls(finished.load(), finished.tokenization)
        return cls(*_of_adapter(resolve_adapter_dir(folder), base))

    def write(self, prompts: Sequence[str], fields: dict[str, Any], *, chat: bool = False) -> list[str]:
        """What the model writes after each prompt.

        Args:
            prompts: texts.
            fields: of `transformers.GenerationConfig`.
            chat: whether a prompt is a user's message in the chat template.

        Raises:
            InputError: an empty prompt, no chat template, a field that does not exist.
        """
        if empty := [number for number, prompt in enumerate(prompts, start=1) if not prompt]:
            raise InputError(f"prompt {empty[0]} is empty")
        tokenizer = self.tokenization.tokenizer
        if chat and not tokenizer.chat_template:
            raise InputError("the tokenizer has no chat template: give the prompt as it stands, without --chat")
        config = generation_config(fields, tokenizer)
        rows = [Row("prompt", [{"role": "user", "content": p}] if chat else p, "", {}) for p in prompts]
        ids = [self.tokenization.prompt_ids(row) for row in rows]
        return [text.strip() for text in generate(self.model, tokenizer, ids, config=config, batch_size=8)]


def _of_adapter(folder: Path, base: str | None) -> tuple[Any, Tokenization]:
    config = read_config(folder / CONFIG_NAME)
    task, named = config.get("task_type"), base or config.get("base_model_name_or_path")
    if task not in (TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM, None):
        raise InputError(f"{folder} is an adapter for {task}, which writes no texts")
    if not named:
        raise InputError(f"{folder} does not name its base model: give it with --base")
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(named)
    complete_tokenizer(tokenizer, name=named, chat_template=None, chat=False)
    model: Any = load_language_model(resolve_model(named), tokenizer, parse_task_type(task or TaskType.CAUSAL_LM))
    try:
        adapted = PeftModel.from_pretrained(model, folder)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise InputError(f"cannot load the adapter {folder} on {named}: {error}") from error
    return adapted.to(torch.accelerator.current_accelerator() or "cpu"), Tokenization(tokenizer)
