"""The site builds without a warning and loads nothing from elsewhere; its pages hold what they are to hold."""

from __future__ import annotations

import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

import ailora
from docs import hooks, source_map
from tests.docs.pages import ROOT


class _References(HTMLParser):
    """What a page loads when it is opened, and where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        if tag == "link" and found.get("rel") in {"canonical", "prev", "next"}:
            return
        if tag in {"script", "img", "link", "iframe", "source", "video"}:
            self.loaded.extend(found[key] for key in ("src", "href") if found.get(key))
        elif tag == "a" and found.get("href"):
            self.links.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    counted = logging.getLogger("mkdocs")
    try:
        build(config)
    finally:
        config.plugins.on_shutdown()
        counted.handlers.clear()
    return folder


@pytest.mark.ci
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_the_site_builds_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        if page.name == "404.html":  # its links are absolute: nobody opens it from disk
            continue
        for reference in _References(page.read_text(encoding="utf-8")).loaded:
            parts = urlsplit(reference)
            if parts.scheme == "data":
                continue
            assert not parts.scheme, f"{page.name} loads {reference}"
            assert not parts.netloc, f"{page.name} loads {reference}"
            assert (page.parent / unquote(parts.path)).exists(), f"{page.name} loads {reference}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:|@import", style.read_text(encoding="utf-8")), style


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    text = (site / "reference" / "ailora.html").read_text(encoding="utf-8")
    missing = [name for name in ailora.__all__ if not re.search(rf'id="ailora\.(\w+\.)*{name}"', text)]
    assert not missing


def test_every_command_is_on_the_page_of_commands() -> None:
    page = "\n".join(hooks.commands_page())
    for name in ("train", "init", "study run", "study report", "cache show", "verify"):
        assert f"## ailora {name}\n" in page
    assert "`--rank`" in page
    assert "| `CONFIG` | required |" in page


def test_links_to_examples_lead_to_the_page_that_shows_them(site: Path) -> None:
    text = (site / "language_models.html").read_text(encoding="utf-8")
    assert "examples.html#examples-alpaca-yaml" in text
    assert 'id="examples-alpaca-yaml"' in (site / "examples.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "SECURITY.md"])
def test_relative_links_of_the_files_beside_the_site(name: str) -> None:
    """Those that a code host shows; the build checks the links of the pages."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://)([^)#\s]+)", text):
        assert (ROOT / target).exists(), f"{name} links to {target}"


def test_the_architecture_page_names_every_file() -> None:
    """Written by `python -m docs.source_map`."""
    assert source_map.FILE.read_text(encoding="utf-8") == source_map.render()
    packages = {folder.name for folder in source_map.SOURCE.iterdir() if (folder / "__init__.py").exists()}
    assert set(source_map.PACKAGES) == packages
    for file in source_map.SOURCE.rglob("*.py"):
        assert file.name == "__main__.py" or source_map.summary(file), file


def test_the_readme_names_every_package() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## Packages")[1]
    assert all(f"{package}" in tree for package in source_map.PACKAGES)
