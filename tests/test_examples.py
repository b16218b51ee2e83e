"""Run the example in the docstring of every name that `ailora` exports."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path

import pytest

import ailora

#: `PRESETS` is a dictionary, and has no docstring.
DOCUMENTED = sorted(set(ailora.__all__) - {"PRESETS"})


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_example_of_an_export(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {exported: getattr(ailora, exported) for exported in ailora.__all__}
    text = inspect.cleandoc(getattr(ailora, name).__doc__ or "")
    example = doctest.DocTestParser().get_doctest(text, names, name, None, None)
    assert example.examples, f"{name} has no example"
    report: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.append)
    assert not result.failed, "".join(report)
