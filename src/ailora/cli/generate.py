"""`ailora generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ailora.formatting import escape_controls


def generate(
    adapter: Annotated[Path, typer.Argument(help="The folder of a finished run or of an adapter.")],
    prompt: Annotated[list[str], typer.Option("--prompt", help="A prompt; may be repeated.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of generated tokens.")] = 128,
    num_beams: Annotated[int, typer.Option(min=1, help="1 is greedy.")] = 1,
    base: Annotated[
        str | None, typer.Option(help="The base model; default: the name in the adapter's configuration.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Format each prompt as a user's message in the chat template.")
    ] = False,
) -> None:
    """Generate a completion of each prompt, separated by empty lines."""
    from ailora.recipes.inference.text_generator import TextGenerator

    generator = TextGenerator.load(adapter, base=base)
    fields = {"max_new_tokens": max_new_tokens, "num_beams": num_beams}
    for number, text in enumerate(generator.generate(prompt, fields, chat=chat)):
        if number:
            typer.echo("")
        typer.echo(escape_controls(text))
