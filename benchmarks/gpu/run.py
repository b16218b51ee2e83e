"""Measure ailora on one GPU, in a few minutes and without a network.

    python benchmarks/gpu/run.py [--minutes 9] [--out DIR]
    python benchmarks/gpu/run.py --tiny --device cpu              a rehearsal of the same code on small shapes

Needs Python with PyTorch and the usual packages beside it, no installed ailora: `make gpu-pack` fills `.gpu` with what
else is needed, and the source of this checkout is used. The parts run in processes of their own, the most informative
first; each gets its share of the time that is left, so that neither a crash nor a long run costs the others their
results. `DIR/results.jsonl` (default: $OUT, else out/gpu) has one line per result, written when it is measured;
`DIR/log.txt` has what the parts printed.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from records import append_record

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACK = ROOT / ".gpu"
#: Where `../shared/lm/get_models.py` makes models.
MODELS = Path.home() / ".cache" / "ailora-models"
#: Seconds that a part has to end by itself before it is killed.
GRACE_S = 3.0
#: Seconds below which a part is not started: the libraries alone take longer to import.
MIN_PART_S = 5.0


@dataclass(frozen=True)
class Part:
    """A part of the measurements.

    Attributes:
        name: Of its script beside this file.
        seconds: What it needs; its share of the time, beside those of the parts after it.
    """

    name: str
    seconds: float


PARTS = (
    Part("versions", 20),
    Part("adapt", 45),
    Part("decompositions", 110),
    Part("steps", 140),
    Part("contracts", 80),
    Part("trials", 145),
)


def share_time(seconds_left: float, parts: Sequence[Part]) -> float:
    """Return the time limit of the first of some parts.

    Each part gets the time that is left in proportion to what it needs. Time that it leaves over goes to those after
    it.

    Args:
        seconds_left: For all of the parts.
        parts: Those that have not run.

    Returns:
        Seconds, 0 if they are too few to start a part.
    """
    limit = seconds_left * parts[0].seconds / sum(part.seconds for part in parts)
    return limit if limit >= MIN_PART_S else 0.0


def unpack(pack: Path, folder: Path) -> list[str]:
    """Unpack the archives of `make gpu-pack`, and return their names: `site` has packages, `shared` data and models.

    An archive may be in pieces, `NAME.tar.xz.000` and so on, as `pack.py --transfers` writes them.
    """
    pieces: dict[str, list[Path]] = {}
    for file in sorted(pack.glob("*.tar.xz*")):
        name = file.name if file.suffix == ".xz" else file.stem
        pieces.setdefault(name, []).append(file)

    def extract(files: list[Path]) -> None:
        content = io.BytesIO(b"".join(file.read_bytes() for file in files))
        with tarfile.open(fileobj=content) as tar:
            tar.extractall(folder, filter="data")

    with ThreadPoolExecutor() as pool:
        list(pool.map(extract, pieces.values()))
    return list(pieces)


def write_metadata(site: Path) -> None:
    """Write the metadata of an installed ailora: its files record its version."""
    text = (ROOT / "src/ailora/__init__.py").read_text(encoding="utf-8")
    number = re.search(r'__version__ = "(.+)"', text)
    assert number is not None
    folder = site / f"ailora-{number[1]}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ailora\nVersion: {number[1]}\n", encoding="utf-8")


def part_environment(folder: Path, device: str) -> dict[str, str]:
    """Return the environment of a part: packages, caches of its own, no network."""
    path = [str(ROOT / "src"), str(folder / "site"), str(HERE), str(HERE.parent)]
    changes = {
        "PYTHONPATH": os.pathsep.join([*path, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
        "AILORA_CACHE": str(folder / "cache"),
        "AILORA_GPU_FOLDER": str(folder),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "huggingface"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if device == "cpu":
        changes["CUDA_VISIBLE_DEVICES"] = ""
    return os.environ | changes


def run_part(part: Part, limit_s: float, *, options: list[str], environment: dict[str, str], log: IO[bytes]) -> str:
    """Run a part within its time limit, and copy what it prints to the log and to standard output.

    Returns:
        `done`, `cut off`, or the exit code in words.
    """
    deadline = time.time() + limit_s - GRACE_S
    command = [sys.executable, str(HERE / f"{part.name}.py"), "--deadline", f"{deadline:.1f}", *options]
    # A process group of its own, so that its children end with it.
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    copier = threading.Thread(target=_copy_lines, args=(process.stdout, log), daemon=True)
    copier.start()
    try:
        process.wait(limit_s - GRACE_S)
        outcome = "done" if process.returncode == 0 else f"ended with exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        outcome = "cut off"
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    finally:
        _kill_group(process)
    copier.join(1.0)
    return outcome


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a part, its own children included, which hold the GPU's memory."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _copy_lines(source: IO[bytes] | None, log: IO[bytes]) -> None:
    assert source is not None
    with source:
        for line in source:
            log.write(line)
            log.flush()
            sys.stdout.write(line.decode(errors="replace"))
            sys.stdout.flush()


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything, imports included")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "out" / "gpu"))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small shapes: a rehearsal")
    parser.add_argument("--parts", nargs="+", default=[part.name for part in PARTS], metavar="PART")
    parser.add_argument("--pack", type=Path, default=PACK, help="folder of `make gpu-pack`")
    arguments = parser.parse_args(argv)
    names = [part.name for part in PARTS]
    if unknown := [name for name in arguments.parts if name not in names]:
        parser.error(f"unknown part {unknown[0]!r}: choose from {', '.join(names)}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    arguments = parse_arguments(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    results, log_file = arguments.out / "results.jsonl", arguments.out / "log.txt"
    options = ["--results", str(results.resolve()), "--device", arguments.device, *["--tiny"] * arguments.tiny]
    remaining = [part for part in PARTS if part.name in arguments.parts]
    outcomes: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="ailora-gpu-") as name, log_file.open("ab") as log:
        folder = Path(name)
        archives = unpack(arguments.pack, folder)
        write_metadata(folder / "site")
        if not (folder / "shared").exists() and (ROOT.parent / "shared").is_dir():
            (folder / "shared").symlink_to(ROOT.parent / "shared")
        environment = part_environment(folder, arguments.device)
        say(log, f"unpacked {', '.join(archives) or 'nothing'} in {time.monotonic() - started:.1f} s")
        while remaining:
            part = remaining[0]
            limit = share_time(60 * arguments.minutes - (time.monotonic() - started), remaining)
            remaining = remaining[1:]
            began = time.monotonic()
            if limit:
                say(log, f"--- {part.name}, at most {limit:.0f} s")
                outcomes[part.name] = run_part(part, limit, options=options, environment=environment, log=log)
            else:
                outcomes[part.name] = "not started: no time left"
            seconds = time.monotonic() - began
            record = {"part": part.name, "name": "end", "outcome": outcomes[part.name], "seconds": round(seconds, 1)}
            append_record(results, record | {"limit_s": round(limit, 1)})
            say(log, f"--- {part.name}: {outcomes[part.name]} after {seconds:.0f} s")
        say(log, f"{results}: {time.monotonic() - started:.0f} s in all")
    return 0 if set(outcomes.values()) == {"done"} else 1


def say(log: IO[bytes], line: str) -> None:
    """Print a line, and write it to the log."""
    print(line, flush=True)
    log.write(f"{line}\n".encode())
    log.flush()


if __name__ == "__main__":
    sys.exit(main())
