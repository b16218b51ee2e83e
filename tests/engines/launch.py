"""Start a module of the tests in two processes that find each other with gloo on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def launch(module: str, argument: str, *, log: Path, seconds: float = 300) -> int:
    """Run `python -m module argument` in two processes.

    Args:
        module: A module of the tests.
        argument: Its one argument.
        log: Takes what the processes print.
        seconds: After that long all of them are killed.

    Returns:
        The exit code of the launcher: not 0 where a process failed or was killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*launcher, f"--master-port={port}", "-m", module, argument],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(seconds)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
