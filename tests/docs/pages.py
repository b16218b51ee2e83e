"""The snippets of README.md and of the pages in docs/, and what each kind of them has to do.

- `python`: runs, in the page's order, in one namespace a page.
- `yaml`: is read by the real schema. A first line `# NAME.yaml` makes it a file that the page's commands find.
- `sh`: every `ailora` line is parsed by the real command line, its YAML files exist, and it runs. `make` names a
  target, `pip install` an extra. Anything else has to be marked.

`<!-- not run: reason -->` above a snippet leaves out running it, and nothing else: Python is still compiled, commands
are still parsed.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from packaging.requirements import Requirement
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser
from typer.main import get_command

from ailora.cli import app
from ailora.recipes.config.loader import load_config
from ailora.recipes.config.yaml_file import format_yaml, parse_yaml
from ailora.studies.study_config import StudyConfig, load_study_config

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("python", "yaml", "sh")
#: Languages of blocks that hold nothing to check.
PLAIN = ("text", "")
_NOT_RUN = re.compile(r"<!-- not run: (?P<reason>[^>]+?) -->\s*$")
_FENCE = re.compile(r"^ *(?P<fence>`{3,})(?P<language>\S*)[^\n]*$.*?^ *(?P=fence)$", re.MULTILINE | re.DOTALL)
#: What a part of a configuration is completed with, before the schema reads it.
_RUN: dict[str, Any] = {
    "recipe": "classification",
    "model": "builtin:minilm",
    "data": {"train": "train.tsv", "validation": "dev.tsv", "text": ["sentence"]},
    "output": "out/part",
}
_STUDY: dict[str, Any] = {
    "base": _RUN,
    "methods": ["lora", "ailora"],
    "learning_rate": {"values": [1e-3]},
    "seeds": [0],
    "output": "out/study",
}


def pages() -> list[Path]:
    """The pages beside the site, and every page of it that is written by hand."""
    beside = (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))
    return [*beside, *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Snippet:
    """A fenced block: its language, its place, and why it is not run."""

    kind: str
    text: str
    place: str
    not_run: str | None
    example: Example


def snippets(page: Path) -> Iterator[Snippet]:
    """The snippets of a page that are checked, from the top."""
    document = Sybil([CodeBlockParser(kind, _nothing) for kind in KINDS]).parse(page)
    for example in document.examples():
        marked = _NOT_RUN.search(document.text[: example.start])
        yield Snippet(
            kind=document.text[example.start :].lstrip(" `").split(None, 1)[0],
            text=str(example.parsed),
            place=f"{page.relative_to(ROOT)}:{example.line}",
            not_run=marked["reason"] if marked else None,
            example=example,
        )


def languages(page: Path) -> list[str]:
    """The languages of all fenced blocks of a page, those included that are not checked."""
    return [match["language"] for match in _FENCE.finditer(page.read_text(encoding="utf-8"))]


def _nothing(_: Example) -> None:
    return None


def run_python(snippet: Snippet) -> None:
    """Compile a block, and run it in the page's namespace unless it is marked."""
    source = "\n" * snippet.example.line + snippet.text
    code = compile(source, snippet.place.split(":")[0], "exec", dont_inherit=True)
    if snippet.not_run is None:
        exec(code, snippet.example.namespace)


def read_yaml(snippet: Snippet, folder: Path) -> None:
    """Read a block by the schema that it is for, completed where it is a part."""
    raw = parse_yaml(snippet.text)
    named = re.match(r"# (?P<name>[\w.-]+\.yaml)\b", snippet.text)
    path = folder / (named["name"] if named else "unnamed.yaml")
    study = set(raw) <= set(StudyConfig.model_fields)
    completed = raw if "recipe" in raw or "base" in raw else {**(_STUDY if study else _RUN), **raw}
    path.write_text(snippet.text if completed is raw else format_yaml(completed), encoding="utf-8")
    if study:
        load_study_config(path)
    else:
        load_config(path, to_run=False)


def commands(snippet: Snippet) -> Iterator[list[str]]:
    """The command lines of a block, without comments, continued lines joined."""
    for line in snippet.text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def check_command(words: list[str], folder: Path, *, marked: bool) -> list[str] | None:
    """Check a command line as far as that goes without running it.

    Returns:
        The arguments of `ailora`, if it is what runs.
    """
    program, *arguments = words
    if ("-m", "ailora") in pairwise(words):
        arguments = words[words.index("ailora") + 1 :]
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(arguments) <= set(targets), words
        return None
    elif program == "pip":
        _check_extras(arguments)
        return None
    elif program != "ailora":
        assert marked, f"`{program}` is no program of ours: mark the block, with the reason"
        return None
    parse(arguments)
    for file in arguments:
        if file.endswith(".yaml") and program == "ailora":
            assert (folder / file).is_file(), f"{shlex.join(words)}: no block and no example is called {file}"
    return arguments if program == "ailora" else None


def parse(arguments: list[str]) -> None:
    """Have the command line parse arguments, and do nothing."""
    command, name = get_command(app), "ailora"
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        name, *arguments = arguments
        assert name in command.commands, f"no command {name!r}"  # type: ignore[union-attr]
        command = command.commands[name]  # type: ignore[union-attr]
    command.make_context(name, list(arguments))


def _check_extras(arguments: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for argument in arguments[1:]:
        if not argument.startswith("-"):
            wanted = Requirement(argument.split(" @ ")[0])
            assert wanted.name == "ailora", argument
            assert wanted.extras <= set(project["optional-dependencies"]), argument
