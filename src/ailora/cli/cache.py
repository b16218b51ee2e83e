"""`ailora cache`."""

from __future__ import annotations

import typer

cache = typer.Typer(help="Decompositions kept on disk.", no_args_is_help=True)


@cache.command()
def show() -> None:
    """Show where the cache is, what it holds and when each entry was last used."""
    from datetime import datetime

    from rich.table import Table

    from ailora.cli.tables import console
    from ailora.formatting import format_bytes, pluralize
    from ailora.spectral import SpectralCache

    kept = SpectralCache()
    entries = kept.entries()
    table = Table("entry", "size", "last used")
    for file, size, used in reversed(entries):
        when = datetime.fromtimestamp(used).isoformat(sep=" ", timespec="seconds")
        table.add_row(file.stem[:16], format_bytes(size), when)
    if entries:
        console.print(table)
    total = sum(size for _, size, _ in entries)
    count = pluralize(len(entries), "entry", "entries")
    typer.echo(f"{kept.folder}: {count}, {format_bytes(total)} of {format_bytes(kept.limit)}")


@cache.command()
def clear() -> None:
    """Remove every entry."""
    from ailora.spectral import SpectralCache

    typer.echo(f"{SpectralCache().clear()} entries removed")
