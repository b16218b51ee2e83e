"""What the site holds beside the pages of this folder: examples, changes, and every command with its options.

Pages link to files of the repository (`../examples/sst2.yaml`), which works where the repository is read; on the site
such a link leads to the page that shows the file.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.main import get_command

from ailora.cli import app

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES, CHANGES, COMMANDS = "examples.md", "changelog.md", "reference/commands.md"
_LANGUAGES = {".yaml": "yaml", ".py": "python", ".slurm": "sh", ".ipynb": "python"}
_LINK = re.compile(r"\]\((?P<target>[^)\s:#]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the made pages."""
    pages = {
        EXAMPLES: "\n\n".join(examples_page()),
        CHANGES: (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        COMMANDS: "\n\n".join(commands_page()),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links to files of the repository to the pages that show them."""

    def led(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), match["target"]))
        if target == "CHANGELOG.md":
            shown = CHANGES
        elif target.startswith("examples") and (ROOT / target).exists():
            shown = f"{EXAMPLES}#{anchor(target)}"
        else:
            return match[0]
        depth = page.file.src_uri.count("/")
        return f"]({'../' * depth}{shown})"

    return _LINK.sub(led, markdown)


def anchor(path: str) -> str:
    """The anchor of a file or folder on the page of examples."""
    return re.sub(r"[^a-z0-9]+", "-", path.lower()).strip("-")


def examples_page() -> Iterator[str]:
    """Every example in full, folder by folder."""
    yield f"# Examples {{ #{anchor('examples')} }}\n\nFiles of the repository's folder `examples`."
    folder = ""
    for path in sorted((ROOT / "examples").rglob("*"), key=lambda path: (path.parent, path.name)):
        if path.suffix not in _LANGUAGES:
            continue
        name = path.relative_to(ROOT).as_posix()
        if (parent := posixpath.dirname(name)) != folder:
            folder = parent
            if folder != "examples":
                yield f"## {folder} {{ #{anchor(folder)} }}"
        yield f"### {name} {{ #{anchor(name)} }}"
        text = path.read_text(encoding="utf-8")
        yield from _cells(text) if path.suffix == ".ipynb" else [_fenced(text, _LANGUAGES[path.suffix])]


def _cells(notebook: str) -> Iterator[str]:
    """The cells of a notebook; headings become bold, as the page has its own."""
    for cell in json.loads(notebook)["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            yield _fenced(text, "python")
        else:
            yield re.sub(
                r"\[([^]]*)\]\([^)]*\.ipynb\)", r"\1", re.sub(r"^#+ (.*)$", r"**\1**", text, flags=re.MULTILINE)
            )


def _fenced(text: str, language: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def commands_page() -> Iterator[str]:
    """Every command with its arguments and options, from the program itself."""
    yield "# Commands\n\n`ailora COMMAND --help` shows the same. Wrong input ends with one message and exit code 2."
    yield from _described(get_command(app), "ailora")


def _described(command: Any, name: str) -> Iterator[str]:
    if commands := getattr(command, "commands", None):
        for child, inner in commands.items():
            yield from _described(inner, f"{name} {child}")
        return
    yield f"## {name}\n\n{command.help}"
    rows = [_row(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
    if rows:
        yield "\n".join(["| | default | |", "| --- | --- | --- |", *rows])


def _row(parameter: Any) -> str:
    names = ", ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))
    if parameter.param_type_name == "argument":
        names = f"`{(parameter.metavar or parameter.name).upper()}`"
    default = parameter.default
    plain = isinstance(default, bool | int | float | str | Path) and not (default is False or default == "")
    shown = "required" if parameter.required else f"`{default}`" if plain else ""
    explained = (parameter.help or "").replace("|", "\\|")
    return f"| {names} | {shown} | {explained} |"
