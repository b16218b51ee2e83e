"""The commands as a user types them."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from contextlib import ExitStack, chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from ailora import __version__
from ailora.cli import main
from ailora.recipes.config.yaml_file import format_yaml
from ailora.spectral import cached_svd
from tests.recipes.conftest import *  # noqa: F403
from tests.tiny_models import tiny_config


def ailora(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command as its process would, in this one: importing torch and transformers anew takes seven seconds."""
    out, err = io.StringIO(), io.StringIO()
    log = logging.getLogger("ailora")
    handlers, level, code = log.handlers[:], log.level, 0
    with ExitStack() as stack:
        stack.enter_context(patch.object(sys, "argv", ["ailora", *arguments]))
        stack.enter_context(chdir(cwd or Path.cwd()))
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    log.handlers, log.level = handlers, level
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def test_a_process_of_its_own_ends_as_told() -> None:
    command = [sys.executable, "-c", "from ailora.cli import main; main()", "plan", "builtin:minilm", "--rank", "0"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 2
    # Nothing else: what libraries say of themselves is no message of the command.
    assert made.stderr.startswith("ailora: error: rank must be a whole number from 1 to")
    assert len(made.stderr.splitlines()) == 1


def test_the_version_is_printed() -> None:
    assert ailora("--version").stdout == f"ailora {__version__}\n"


@pytest.mark.parametrize(
    "start",
    ["from ailora.cli import main; main()", "import runpy; runpy.run_module('ailora', run_name='__main__')"],
    ids=["ailora", "python -m ailora"],
)
def test_help_is_instant(start: str) -> None:
    """Help does not import torch: that makes it instant, and unlike a time it does not depend on the machine."""
    script = f"import sys; sys.argv = ['ailora', '--help']\ntry: {start}\nfinally: "
    check = script + "assert not {'torch', 'peft', 'transformers'} & sys.modules.keys()"
    made = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    for command in (
        *(
            "init",
            "train",
            "evaluate",
            "predict",
            "export",
            "merge",
            "verify",
            "inspect",
            "roles",
            "plan",
            "demo",
            "cache",
        ),
    ):
        assert command in made.stdout


def test_plan_and_roles_read_no_weights() -> None:
    plan = json.loads(ailora("plan", "builtin:minilm", "--rank", "4", "--json").stdout)
    assert len(plan["adapters"]) == 12
    assert {a["rank"] for a in plan["adapters"]} == {4}
    shown = ailora("plan", "builtin:minilm", "--policy", "reversed", "--role", "query", "--role", "output").stdout
    assert "minor, singular" in shown
    assert "encoder.layer.*.attention.output.dense" in shown
    roles = json.loads(ailora("roles", "builtin:minilm", "--json").stdout)
    assert sum(p["role"] == "value" for p in roles["projections"]) == 6
    assert roles["unmatched"] == [{"module": "pooler.dense", "shape": [384, 384], "reason": "a head"}]


def test_roles_shows_the_rows_and_the_layout_of_fused_weights(tmp_path: Path) -> None:
    tiny_config("gpt_neox").save_pretrained(tmp_path)
    shown = " ".join(ailora("roles", str(tmp_path)).stdout.split())
    assert "0-7, 24-31, ... , 72-79" in shown.replace("...,", "... ,")
    assert "4 x (query 8 + key 8 + value 8)" in shown
    assert "modules without a role" not in shown
    tiny_config("jamba").save_pretrained(tmp_path)
    shown = ailora("roles", str(tmp_path)).stdout
    assert "modules without a role" in shown
    assert "state space" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "builtin:minilm", "--policy", "ailroa"), "ailora: error: unknown policy 'ailroa' (did you mean"),
        (("plan", "builtin:minilm", "--policy", "full"), "policy 'full' has no plan; policies"),
        (("plan", "builtin:minilm", "--rank", "0"), "rank must be a whole number from 1 to"),
        (("roles", "./nowhere"), "'./nowhere' is not a folder"),
        (("roles", "builtin:minilm", "--role-name", "zzz=query"), "'zzz' (query) matches no linear module"),
        (("train", "nowhere.yaml"), "cannot read the configuration nowhere.yaml"),
        (("evaluate", "."), "is not the folder of a run"),
    ],
)
def test_mistakes_end_with_one_message_and_no_traceback(arguments: tuple[str, ...], message: str) -> None:
    made = ailora(*arguments)
    assert made.returncode == 2
    assert message in made.stderr
    assert "Traceback" not in made.stderr


def test_cache_is_shown_and_cleared() -> None:
    cached_svd(torch.randn(600, 520), 4, "minor")
    shown = ailora("cache", "show").stdout
    assert "1 entry, " in shown
    assert os.environ["AILORA_CACHE"] in shown
    assert "1 entry removed" in ailora("cache", "clear").stdout
    assert "0 entries" in ailora("cache", "show").stdout


def test_train_evaluate_predict(config: dict[str, Any], tmp_path: Path, verdicts: dict[str, Path]) -> None:
    (tmp_path / "c.yaml").write_text(format_yaml(config))
    made = ailora("train", "c.yaml", "--no-cache", "data.max_train_samples=32", "output=run", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "test accuracy" in made.stdout
    scores = json.loads(ailora("evaluate", str(tmp_path / "run"), "--data", str(verdicts["test"])).stdout)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert scores == pytest.approx(result["metrics"]["test"], abs=1e-6)
    out = tmp_path / "p.jsonl"
    made = ailora("predict", str(tmp_path / "run"), "--input", str(verdicts["test"]), "--output", str(out))
    assert "24 predictions written" in made.stdout
    assert len(out.read_text().splitlines()) == 24


def test_a_cell_wider_than_its_column_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    from ailora.cli.tables import console, inspection_tables, make_table

    path = "/models/" + "abcdefghij" * 20
    figures = {"kind": "run", "folder": ".", "base model": path, "lines": [{"role": "query", "module": path}]}
    console.print(*inspection_tables(figures), make_table(None, ("module",), [(path,)]), width=60)
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert printed.count("j") == 3 * path.count("j")


def test_names_from_files_of_strangers_command_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Tables, errors and log messages of a command."""
    from ailora.cli.tables import console, make_table, print_report

    evil = "\x1b]0;owned\x07\u202e"
    console.print(make_table(evil, (evil,), [(evil,)]), evil)
    print_report(evil, {evil: evil}, as_json=False)
    printed = capsys.readouterr().out
    assert printed.count(r"\x1b]0;owned\x07\u202e") == 7
    result = ailora("train", str(tmp_path / f"{evil}.yaml"))
    assert r"\x1b]0;owned\x07\u202e.yaml" in result.stderr
    assert not {"\x1b", "\x07", "\u202e"} & set(printed + result.stderr)
