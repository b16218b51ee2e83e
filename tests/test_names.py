"""Names of modules and classes occur once, so that an import line and a page of the docs mean one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import ailora

PACKAGE = Path(ailora.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def _repeated(places: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: files for name, files in places.items() if len(files) > 1}


def test_a_module_name_occurs_once() -> None:
    """Files of `cli` are named after their commands."""
    places: dict[str, list[str]] = defaultdict(list)
    for file in FILES:
        if file.stem not in ("__init__", "__main__") and file.parent != PACKAGE / "cli":
            places[file.stem].append(str(file.relative_to(PACKAGE)))
    assert len(places) > 100
    assert _repeated(places) == {}


def test_a_public_class_name_occurs_once() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(file.relative_to(PACKAGE)))
    assert len(places) > 100
    assert _repeated(places) == {}
