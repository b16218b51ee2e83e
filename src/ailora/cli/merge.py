"""`ailora merge`."""

from __future__ import annotations

from typing import Annotated

import typer

from ailora.cli.options import Adapter, Force, Json, Model, Out


def merge(
    base: Model,
    adapter: Adapter,
    out: Out,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; default: as each tensor is.")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write the base model with the adapter merged in, shard by shard; the same command after a kill resumes."""
    from ailora.checkpoints import merge as write
    from ailora.cli.tables import print_report

    report = write(base, adapter, out, dtype=dtype, force=force)
    print_report(f"written to {out}", report.to_dict(), as_json=as_json)
