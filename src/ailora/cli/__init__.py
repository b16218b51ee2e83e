"""The command line: one small file per command, heavy imports inside the commands so that help is instant."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from ailora import __version__
from ailora.cli.analyze import analyze
from ailora.cli.cache import cache
from ailora.cli.demo import demo
from ailora.cli.evaluate import evaluate
from ailora.cli.export import export
from ailora.cli.extras import missing_extra
from ailora.cli.generate import generate
from ailora.cli.init import init
from ailora.cli.inspect import inspect
from ailora.cli.merge import merge
from ailora.cli.plan import plan
from ailora.cli.predict import predict
from ailora.cli.quiet import hide_library_messages
from ailora.cli.report import report
from ailora.cli.roles import roles
from ailora.cli.study import study
from ailora.cli.suggest_lr import suggest_lr
from ailora.cli.train import train
from ailora.cli.verify import verify
from ailora.errors import AiloraError

app = typer.Typer(
    name="ailora",
    help="LoRA that starts right: function-aware asymmetric initialization on stock PEFT models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (
    init,
    train,
    suggest_lr,
    evaluate,
    predict,
    generate,
    export,
    merge,
    verify,
    inspect,
    analyze,
    roles,
    plan,
    report,
    demo,
):
    app.command()(command)
app.add_typer(study, name="study")
app.add_typer(cache, name="cache")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ailora {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run a command; a mistake in its input ends with one message and exit code 2, not with a traceback."""
    log = logging.getLogger("ailora")
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)
    hide_library_messages()
    try:
        app()
    except AiloraError as error:
        sys.exit(_report(str(error)))
    except ModuleNotFoundError as error:
        message = missing_extra(error, command=sys.argv[1])
        if message is None:
            raise
        sys.exit(_report(message))


def _report(message: str) -> int:
    print(f"ailora: error: {message}", file=sys.stderr)
    return 2
