"""`ailora cache`."""

from __future__ import annotations

import typer

cache = typer.Typer(help="Decompositions kept on disk.", no_args_is_help=True)


@cache.command()
def show() -> None:
    """Show where the cache is, what it holds and when each entry was last used."""
    from datetime import datetime

    from ailora.cli.tables import console, make_table
    from ailora.formatting import escape_controls, format_bytes, pluralize
    from ailora.spectral import SpectralCache

    kept = SpectralCache()
    entries = kept.entries()
    rows = (
        (file.stem[:16], format_bytes(size), datetime.fromtimestamp(used).isoformat(sep=" ", timespec="seconds"))
        for file, size, used in reversed(entries)
    )
    if entries:
        console.print(make_table(None, ("entry", "size", "last used"), rows))
    total = sum(size for _, size, _ in entries)
    count = pluralize(len(entries), "entry", "entries")
    typer.echo(
        f"{escape_controls(str(kept.folder))}: {count}, {format_bytes(total)} of {format_bytes(kept.limit_bytes)}"
    )


@cache.command()
def clear() -> None:
    """Remove every entry."""
    from ailora.spectral import SpectralCache

    typer.echo(f"{SpectralCache().clear()} entries removed")
