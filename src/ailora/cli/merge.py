"""`ailora merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ailora.cli.options import Force, Json


def merge(
    base: Annotated[str, typer.Argument(help="Local folder, hub id in the cache, or builtin:minilm.")],
    adapter: Annotated[Path, typer.Argument(help="The folder of an adapter, or of a run.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; default: as each tensor is.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the base model with the adapter worked in, shard by shard; the same command after a kill goes on."""
    from ailora.checkpoints import merge as write
    from ailora.cli.tables import print_report

    print_report(f"written to {out}", write(base, adapter, out, dtype=dtype, force=force).to_dict(), json=json)
