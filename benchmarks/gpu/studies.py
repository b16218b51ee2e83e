"""Run studies of `examples/paper` on one GPU, many trials at a time, within a time limit; the same command resumes.

    python benchmarks/gpu/pack.py --with mpnet-base smollm2-135m --transfers
    python benchmarks/gpu/studies.py nlu:cola-mpnet:8 figure4:mpnet:4 [--minutes 8] [--pack DIR]
    python benchmarks/gpu/studies.py nlu:small:1 --tiny --device cpu            a rehearsal

A study is FILE:SCALE:WORKERS. Needs what `run.py` needs; models of the pack are linked to where
`../shared/lm/get_models.py` makes them. `--work` keeps packages and trials from call to call. `OUT/NAME.tar.xz` has a
study's folder without weights, and a description of the machine: unpacked at the path of `--work`, it is recorded by
`benchmarks/paper_studies.py`. `--archive OUT/NAME.tar.xz` continues it on another machine with the same libraries.
"""

from __future__ import annotations

import argparse
import compileall
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from run import MODELS, PACK, ROOT, part_environment, unpack, write_metadata
from trials import STOP_S, TINY_OVERRIDES, TRIAL_ENVIRONMENT, Study, StudyRun, last_line, start_study, stop

#: Seconds for packing the results.
PACK_S = 20.0
REPORT_INTERVAL_S = 20.0
#: Executed in the environment of the studies, where the libraries are.
DESCRIBE = "import json, machine; print(json.dumps(machine.describe()))"


def parse_study(text: str) -> Study:
    """Parse FILE:SCALE:WORKERS."""
    file, scale, workers = text.split(":")
    if not (ROOT / "examples" / "paper" / f"{file}.yaml").is_file():
        raise argparse.ArgumentTypeError(f"examples/paper has no {file}.yaml")
    return Study(file, scale, int(workers))


def prepare(pack: Path, work: Path, device: str) -> subprocess.Popen[bytes] | None:
    """Unpack the pack, unless an earlier call has; link its models, and make the models that travel as packages.

    Returns:
        The process that makes models, or None if there are none to make.
    """
    prepared = work / "prepared"
    if not prepared.exists():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        unpack(pack, work)
        write_metadata(work / "site")
        # Dozens of processes would otherwise compile the same packages at once.
        compileall.compile_dir(work / "site", quiet=2, workers=0)
        if not (work / "shared").exists():
            (work / "shared").symlink_to(ROOT.parent / "shared")
        prepared.touch()
    MODELS.mkdir(parents=True, exist_ok=True)
    for model in (work / "models").glob("*"):
        if not (MODELS / model.name).exists():
            (MODELS / model.name).symlink_to(model)
    if not (work / "get_models.py").exists():
        return None
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(work / "wheels")}
    with (work / "get_models.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, str(work / "get_models.py"), "smollm2-135m"],
            env=part_environment(work, device) | offline,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def run_studies(
    studies: list[Study],
    folder: Path,
    overrides: tuple[str, ...],
    *,
    until: float,
    making: subprocess.Popen[bytes] | None,
) -> None:
    """Run studies until they end, or until a time (`time.monotonic()`); one that needs a model in the making waits."""
    started = time.monotonic()
    waiting = [study for study in studies if making and "smollm2" in study.scale]
    runs = [start_study(study, folder, overrides) for study in studies if study not in waiting]
    reported = started
    try:
        while time.monotonic() < until and (waiting or any(run.process.poll() is None for run in runs)):
            time.sleep(1.0)
            if making and waiting and making.poll() is not None:
                print(
                    f"models made after {time.monotonic() - started:.0f} s, exit code {making.returncode}", flush=True
                )
                if not making.returncode:
                    runs += [start_study(study, folder, overrides) for study in waiting]
                waiting = []
            if time.monotonic() > reported + REPORT_INTERVAL_S:
                reported = time.monotonic()
                print(f"{reported - started:4.0f} s: {', '.join(map(describe_run, runs))}", flush=True)
    finally:
        stop(runs)
        if making:
            making.terminate()
            making.wait()
    for run in runs:
        print(f"{describe_run(run)}, {last_line(folder / f'{run.name}.log')}", flush=True)


def describe_run(run: StudyRun) -> str:
    return f"{run.name} {len(list(run.output.glob('trials/*/result.json')))} trials"


def pack_study(folder: Path, file: Path, machine: str) -> None:
    """Pack a study's folder without weights, checkpoints and caches, with `machine.json`."""
    (folder / "machine.json").write_text(machine, encoding="utf-8")
    with tarfile.open(file, "w:xz", preset=1) as tar:
        for path in sorted(folder.rglob("*")):
            kept = path.suffix not in (".safetensors", ".pt", ".lock", ".log") and "checkpoints" not in path.parts
            if path.is_file() and kept:
                tar.add(path, str(path.relative_to(folder.parent)))


def main() -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=parse_study, metavar="FILE:SCALE:WORKERS")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything")
    parser.add_argument("--pack", type=Path, default=PACK, help="folder of `make gpu-pack`")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ailora-studies")
    parser.add_argument("--archive", type=Path, action="append", default=[], help="of a study, to be continued")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="a single short trial of each study: a rehearsal")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "out" / "gpu"))
    arguments = parser.parse_args()
    making = prepare(arguments.pack, arguments.work, arguments.device)
    print(f"ready after {time.monotonic() - started:.0f} s", flush=True)
    environment = part_environment(arguments.work, arguments.device) | TRIAL_ENVIRONMENT
    os.environ.update(environment)
    folder = arguments.work / "studies"
    folder.mkdir(exist_ok=True)
    for archive in arguments.archive:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    until = started + 60 * arguments.minutes - STOP_S - PACK_S
    overrides = TINY_OVERRIDES if arguments.tiny else ()
    run_studies(arguments.studies, folder, overrides, until=until, making=making)
    described = subprocess.run(
        [sys.executable, "-c", DESCRIBE], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    for study in arguments.studies:
        if (folder / study.name).is_dir():
            pack_study(folder / study.name, arguments.out / f"{study.name}.tar.xz", described.stdout)
    print(f"ended after {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
