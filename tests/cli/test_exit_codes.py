"""How commands end that cannot do what they should: one line, a code, and no traceback unless asked."""

from __future__ import annotations

import errno
import importlib.util
import io
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ailora import cli
from ailora.cli.exit_codes import escape_unencodable_output
from ailora.cli.tables import console, make_table
from ailora.errors import InputError
from tests.cli.test_cli import ailora

SECRET = "s3cr3t"


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[BaseException], None]:
    """Let every command raise an exception."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def use(error: BaseException) -> None:
        # A frame of the package itself, as a bug would have.
        def app(args: list[str]) -> None:
            raise error

        monkeypatch.setattr(cli, "app", app)
        monkeypatch.setattr("ailora.cli.exit_codes._find_place_in_user_code", lambda _: None)

    return use


def test_a_bug_is_one_line_with_its_traceback_in_a_file(raising: Callable[[BaseException], None]) -> None:
    raising(KeyError("a\nb"))
    made = ailora("train", "c.yaml", f"training.hub_token={SECRET}", f"postgresql://me:{SECRET}@host/x")
    assert made.returncode == 70
    start, _, file = made.stderr.partition("; traceback: ")
    assert start == (
        "ailora: error: KeyError: 'a\\nb' in `ailora train c.yaml 'training.hub_token=***' "
        "'postgresql://me:***@host/x'`: this is a bug, please report it"
    )
    content = Path(file.strip()).read_text()
    assert "Traceback (most recent call last)" in content
    assert SECRET not in content
    assert stat.S_IMODE(Path(file.strip()).stat().st_mode) == 0o600


def test_the_file_of_a_bug_holds_names_that_are_not_utf8(raising: Callable[[BaseException], None]) -> None:
    raising(KeyError("\udcff"))
    made = ailora("inspect", "a\udcff")
    assert made.returncode == 70
    assert "\\udcff" in Path(made.stderr.partition("; traceback: ")[2].strip()).read_text()


@pytest.mark.parametrize("arguments", [("--debug", "roles"), ("roles", "--debug")])
def test_debug_prints_the_traceback(
    raising: Callable[[BaseException], None], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    raising(RuntimeError("boom"))
    made = ailora(*arguments)
    assert made.returncode == 70
    assert made.stderr.startswith("Traceback (most recent call last)")
    assert "ailora: error: RuntimeError: boom in `ailora roles`: this is a bug, please report it\n" in made.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_users_code_is_not_called_our_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def build():\n    raise RuntimeError('boom')\n")
    spec = importlib.util.spec_from_file_location("mine", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(cli, "app", lambda args: module.build())
    made = ailora("train")
    assert f"raised at {file}:2, in your own code; traceback: " in made.stderr
    assert "bug" not in made.stderr


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "ailora: interrupted\n"),
        (SystemExit(130), 130, "ailora: interrupted\n"),
        (SystemExit(1), 1, ""),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "ailora: error: [Errno 28] No space left on device\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "Permission denied: '/x'\n"),
        (OSError("We couldn't connect\nto the hub"), 2, "ailora: error: We couldn't connect to the hub\n"),
        (MemoryError(), 2, "ailora: error: out of memory (on the CPU): take a smaller batch or model\n"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: not\nenough memory"),
            2,
            "not enough memory): take a smaller batch or model\n",
        ),
    ],
)
def test_what_is_no_bug_is_not_called_one(
    raising: Callable[[BaseException], None], error: BaseException, code: int, message: str
) -> None:
    raising(error)
    made = ailora("train")
    assert made.returncode == code
    assert made.stderr.endswith(message)
    assert "bug" not in made.stderr
    assert len(made.stderr.splitlines()) == bool(message)


def test_a_lost_connection_is_an_error(raising: Callable[[BaseException], None]) -> None:
    """The pipe that broke was not the output of the command."""
    lost = InputError("the storage is lost")
    lost.__cause__ = BrokenPipeError(errno.EPIPE, "Broken pipe")
    raising(lost)
    made = ailora("train")
    assert (made.returncode, made.stderr) == (2, "ailora: error: the storage is lost\n")


def test_an_output_that_nobody_reads_ends_quietly() -> None:
    """As `ailora --help | head -0`: the output is cut where it is printed, or at the end where it is small."""
    for arguments in (["--help"], ["--version"], ["cache", "show"]):
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "-m", "ailora", *arguments]
        made = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writer)
        assert (made.returncode, made.stderr) == (141, ""), arguments


@pytest.mark.ci
@pytest.mark.parametrize("streams", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_lead_nowhere(streams: str) -> None:
    """Otherwise the first file that a command opens has the number of its output."""
    script = (
        "from ailora.cli.exit_codes import open_closed_streams as o; o(); f = open('/dev/null'); assert f.fileno() > 2"
    )
    command = f'"{sys.executable}" -c "{script}; print(1)" {streams}'
    assert subprocess.run(["sh", "-c", command], capture_output=True, check=False).returncode == 0
    command = f'"{sys.executable}" -m ailora cache show {streams}'
    made = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")


def test_characters_that_a_terminal_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a table with a name such as modèle, or an uncertainty with ±, would end as a bug."""
    printed = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, encoding="ascii"))
    escape_unencodable_output()
    console.print(make_table("modèle", ("±",), [("a" * 200,)]))
    print("é")
    sys.stdout.flush()
    assert printed.getvalue().decode().count("\\xe8") == 1
    assert printed.getvalue().endswith(b"\\xe9\n")


def test_a_full_device_is_one_line() -> None:
    command = f'"{sys.executable}" -m ailora cache show > /dev/full'
    made = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert made.returncode != 0
    assert made.stderr.splitlines()[0] == "ailora: error: [Errno 28] No space left on device"
