"""A killed command leaves nothing, or something that the same command completes, bit for bit."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

import ailora
from ailora.checkpoints import merge
from tests.checkpoints.command_kills import Command, run, run_and_kill
from tests.checkpoints.conftest import LLAMA
from tests.tiers import in_tiers


def commands(base: Path, adapter: Path) -> dict[str, Command]:
    return {
        "init": ("init", (str(base),), {"rank": 4}),
        "merge": ("merge", (str(base), str(adapter)), {}),
        "merge in bf16": ("merge", (str(base), str(adapter)), {"dtype": "bf16"}),
        "export": ("export", (str(adapter),), {"rank": 3}),
    }


NAMES = ("init", "merge", "merge in bf16", "export")


def contents(folder: Path) -> dict[str, bytes]:
    """All files but our own folder."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and ".ailora" not in file.parts]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module", params=in_tiers(NAMES, fast=("init", "merge", "export")))
def command(request: pytest.FixtureRequest, base: Path, adapter: Path) -> Command:
    return commands(base, adapter)[request.param]


@pytest.fixture(scope="module")
def undisturbed(command: Command, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], int]:
    """What the command makes, and in how many steps."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    code, steps = run(command, out)
    assert code == 0
    assert steps > 20
    return contents(out), steps


def usable(folder: Path) -> bool:
    """Whether a loader would take it: an adapter by its configuration, a model by its index."""
    names = ("adapter_config.json", "model.safetensors.index.json")
    return any((folder / name).exists() for name in names)


def killed_and_completed(command: Command, out: Path, step: int, expected: dict[str, bytes]) -> None:
    code, _ = run(command, out, at=step)
    # Of what a thread forces to the disk in the background there may be a step more or less.
    assert code in (-signal.SIGKILL, 0)
    if code == 0:
        assert contents(out) == expected
        return
    if usable(out):
        # What a loader looks for first is written last: then everything is there.
        assert contents(out) == expected
    code, _ = run(command, out)
    assert code == 0
    assert contents(out) == expected
    assert sorted(path.name for path in (out / ".ailora").iterdir()) == ["done.json", "lock"]


def test_kills_at_some_steps(command: Command, undisturbed: tuple[dict[str, bytes], int], tmp_path: Path) -> None:
    expected, steps = undisturbed
    for number in range(8):
        killed_and_completed(command, tmp_path / f"out{number}", (steps - 1) * number // 7, expected)


@pytest.mark.slow
def test_kills_at_every_step(command: Command, undisturbed: tuple[dict[str, bytes], int], tmp_path: Path) -> None:
    expected, steps = undisturbed
    for step in range(steps):
        killed_and_completed(command, tmp_path / f"out{step}", step, expected)


@pytest.mark.slow
def test_kills_at_random_moments(command: Command, undisturbed: tuple[dict[str, bytes], int], tmp_path: Path) -> None:
    """By the clock, and again and again in one folder, until the command has come to its end."""
    expected, _ = undisturbed
    clock = random.Random(5)
    kills = number = 0
    while kills < 60:
        number += 1
        out = tmp_path / f"out{number}"
        for attempt in range(40):
            code = run_and_kill(command, out, clock.uniform(0, 0.05 + 0.02 * attempt))
            if code == 0:
                break
            assert code == -signal.SIGKILL
            kills += 1
        assert contents(out) == expected


def test_every_attempt_may_be_killed(
    command: Command, undisturbed: tuple[dict[str, bytes], int], tmp_path: Path
) -> None:
    """One folder, killed a little later each time."""
    expected, steps = undisturbed
    for step in range(3, steps, max(1, steps // 6)):
        run(command, tmp_path / "out", at=step)
    assert run(command, tmp_path / "out")[0] == 0
    assert contents(tmp_path / "out") == expected


def test_a_full_disk(command: Command, undisturbed: tuple[dict[str, bytes], int], tmp_path: Path) -> None:
    expected, _ = undisturbed
    largest = max(len(content) for content in expected.values())
    code, _ = run(command, tmp_path / "out", largest=largest // 2)
    assert code == 1
    assert not usable(tmp_path / "out")
    assert run(command, tmp_path / "out")[0] == 0
    assert contents(tmp_path / "out") == expected


def test_a_full_disk_is_said(base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        ailora.InputError, match=r"No space left on device\): finished parts are kept, and the same comm"
    ):
        merge(str(base), adapter, tmp_path / "out")


def test_an_interrupt(command: Command, undisturbed: tuple[dict[str, bytes], int], tmp_path: Path) -> None:
    expected, _ = undisturbed
    for number, delay in enumerate((0.0, 0.05)):
        out = tmp_path / f"out{number}"
        assert run_and_kill(command, out, delay, signal.SIGINT) in (0, 1)
        assert run(command, out)[0] == 0
        assert contents(out) == expected


def test_what_was_finished_is_not_made_again(base: Path, tmp_path: Path) -> None:
    command: Command = ("init", (str(base),), {"rank": 4})
    _, steps = run(command, tmp_path / "whole")
    run(command, tmp_path / "out", at=steps * 2 // 3)
    pieces = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out/.ailora/pieces").glob("0*.safetensors")}
    assert pieces
    run(command, tmp_path / "out", at=steps // 2)
    for name, stamp in pieces.items():
        assert (tmp_path / "out/.ailora/pieces" / name).stat().st_mtime_ns == stamp


def test_a_base_that_has_changed_since_is_noticed(tmp_path: Path) -> None:
    LLAMA.model().save_pretrained(tmp_path / "base")
    command: Command = ("init", (str(tmp_path / "base"),), {"rank": 4})
    _, steps = run(command, tmp_path / "whole")
    run(command, tmp_path / "out", at=steps // 2)
    LLAMA.model().save_pretrained(tmp_path / "base")
    from ailora.checkpoints import init

    with pytest.raises(
        ailora.InputError,
        match=r"unfinished output of a command with different inputs or options \(files\.config\.json: ",
    ):
        init(str(tmp_path / "base"), tmp_path / "out", rank=4)
    init(str(tmp_path / "base"), tmp_path / "out", rank=4, force=True)


def test_two_processes_do_not_write_to_one_folder(base: Path, tmp_path: Path) -> None:
    from ailora.checkpoints import init
    from ailora.checkpoints.output_dir import OutputDir

    with (
        OutputDir(tmp_path / "out").acquire({"command": "other"}, reads=[], writes=[], force=False),
        pytest.raises(ailora.InputError, match="another process is writing to"),
    ):
        init(str(base), tmp_path / "out", rank=4)
