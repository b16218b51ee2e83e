"""Parts of pages in `docs` that benchmarks write. Each part is between two marks."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def replace_between(page: Path, name: str, script: str, content: str) -> None:
    """Replace the text between two marks of a page.

    Args:
        page: The page.
        name: Name of the part.
        script: Script that writes the part. The first mark names it.
        content: New content.
    """
    begin, end = f"<!-- {name}: made by benchmarks/{script} -->", f"<!-- end of {name} -->"
    text = page.read_text(encoding="utf-8")
    head, _, rest = text.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise SystemExit(f"{page} lacks {begin} or {end}")
    page.write_text(f"{head}{begin}\n\n{content.strip()}\n\n{end}{tail}", encoding="utf-8")
