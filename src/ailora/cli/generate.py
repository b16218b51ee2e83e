"""`ailora generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ailora.formatting import escape_controls


def generate(
    adapter: Annotated[Path, typer.Argument(help="Folder of a finished run, or of an adapter.")],
    prompts: Annotated[list[str], typer.Option("--prompt", help="Prompt to complete; may be repeated.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of generated tokens.")] = 128,
    num_beams: Annotated[int, typer.Option(min=1, help="Number of beams; 1 for greedy search.")] = 1,
    base: Annotated[
        str | None,
        typer.Option(help="Base model to load the adapter on; default: as named by the run or adapter."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Format each prompt as a user's message with the chat template.")
    ] = False,
) -> None:
    """Print a completion of each prompt, separated by empty lines."""
    from ailora.recipes.inference.text_generator import TextGenerator

    generator = TextGenerator.load(adapter, base=base)
    generation_options = {"max_new_tokens": max_new_tokens, "num_beams": num_beams}
    for index, text in enumerate(generator.generate(prompts, generation_options, chat=chat)):
        if index > 0:
            typer.echo("")
        # Generated control characters could change the state of the terminal.
        typer.echo(escape_controls(text))
