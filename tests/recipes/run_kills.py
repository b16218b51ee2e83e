"""Runs in real processes that die by SIGKILL at a chosen place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

#: Dies when a function is entered for the n-th time: in a save, between saves, while results are written.
_KILLED = """
import os, signal, sys
from transformers import Trainer
from ailora.recipes import classification, language_model, registry, run_folder
from ailora.recipes.config.loader import load_config

modules = {"classification": classification, "language_model": language_model, "registry": registry}
owners = {"Trainer": Trainer, "RunFolder": run_folder.RunFolder, **modules}
owner, name, count = sys.argv[2].partition(".")[0], sys.argv[2].partition(".")[2], int(sys.argv[3])
if count:
    real, calls = getattr(owners[owner], name), []
    def die(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(owners[owner], name, die)
registry.run(load_config(sys.argv[1]))
"""


def run_process(config_file: Path, point: str, count: int, *, threads: int = 2) -> int:
    """The exit code of `ailora train CONFIG`, killed when `point` is entered for the n-th time; 0: not killed."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-c", _KILLED, str(config_file), point, str(count)]
    return subprocess.run(command, env=environment, capture_output=True, timeout=600, check=False).returncode
