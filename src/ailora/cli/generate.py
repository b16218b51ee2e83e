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
    fields = {"max_new_tokens": max_new_tokens, "num_beams": num_beams}
    for number, text in enumerate(generator.generate(prompts, fields, chat=chat)):
        if number:
            typer.echo("")
        # Models can generate control characters, which a terminal would obey.
        typer.echo(escape_controls(text))
