"""`ailora cache`."""

from __future__ import annotations

import typer

cache = typer.Typer(help="Show or clear the cache of decompositions on disk.", no_args_is_help=True)


@cache.command()
def show() -> None:
    """Show the folder of the cache, and the size and last use of each entry."""
    from datetime import datetime

    from ailora.cli.tables import console, make_table
    from ailora.formatting import escape_controls, format_bytes, pluralize
    from ailora.spectral import SpectralCache

    spectral_cache = SpectralCache()
    entries = spectral_cache.entries()
    # Most recently used first; the first 16 digits of the hash identify an entry.
    rows = (
        (file.stem[:16], format_bytes(size), datetime.fromtimestamp(last_use).isoformat(sep=" ", timespec="seconds"))
        for file, size, last_use in reversed(entries)
    )
    if entries:
        console.print(make_table(None, ("entry", "size", "last used"), rows))
    total = sum(size for _, size, _ in entries)
    count = pluralize(len(entries), "entry", "entries")
    limit = format_bytes(spectral_cache.limit_bytes)
    typer.echo(f"{escape_controls(str(spectral_cache.folder))}: {count}, {format_bytes(total)} of {limit}")


@cache.command()
def clear() -> None:
    """Remove all entries from the cache."""
    from ailora.formatting import pluralize
    from ailora.spectral import SpectralCache

    typer.echo(f"{pluralize(SpectralCache().clear(), 'entry', 'entries')} removed")
