"""Command line interface: a module per command. Commands import large packages themselves, to keep `--help` fast."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from typing import Annotated

import typer

from ailora import __version__
from ailora.child_environment import safe_import_path
from ailora.cli.exit_codes import escape_unencodable_output, exit_code, open_closed_streams
from ailora.cli.quiet import hide_library_messages
from ailora.formatting import escape_controls

#: Commands and groups of commands, in the order of the help. Each is in the module with the same name.
_COMMANDS = (
    *("init", "train", "suggest_lr", "tune", "evaluate", "predict", "generate", "export", "merge", "verify", "inspect"),
    *("analyze", "roles", "plan", "report", "demo"),
)
_GROUPS = ("study", "cache")

#: Option for tracebacks. `main` removes the option from the command line, because typer would accept it only before the
#: command.
_DEBUG = "--debug"

app = typer.Typer(
    name="ailora",
    help="LoRA that starts right: function-aware asymmetric initialization on stock PEFT models.",
    no_args_is_help=True,
    # `exit_code` reports exceptions instead.
    pretty_exceptions_enable=False,
    add_completion=False,
)
for name in _COMMANDS:
    app.command()(getattr(import_module(f"ailora.cli.{name}"), name))
for name in _GROUPS:
    app.add_typer(getattr(import_module(f"ailora.cli.{name}"), name), name=name)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ailora {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option(_DEBUG, help="Print the traceback of an error. May also follow the command.")
    ] = False,
) -> None:
    pass


class _EscapingFormatter(logging.Formatter):
    """Formatter with escaped control characters, because messages contain names from untrusted files."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_controls(super().format(record))


def main() -> None:
    """Run a command and exit with its code; see `ailora.cli.exit_codes`."""
    open_closed_streams()
    escape_unencodable_output()
    log = logging.getLogger("ailora")
    handler = logging.StreamHandler()
    handler.setFormatter(_EscapingFormatter())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    hide_library_messages()
    arguments = [argument for argument in sys.argv[1:] if argument != _DEBUG]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        try:
            with safe_import_path():
                app(args=arguments)
        # If the reader of a pipe has ended, flushing raises an error, which `exit_code` handles. Without a flush here,
        # the interpreter would print this error at exit.
        finally:
            sys.stdout.flush()
    except BaseException as error:
        sys.exit(exit_code(error, arguments, debug=debug))
