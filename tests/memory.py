"""Peaks of memory, measured in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

_SCRIPT = """
import json, sys
from pathlib import Path
{before}

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024

before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
request = json.loads(sys.argv[1])
{measured}
print(status("VmHWM") - before)
"""


def peak(before: str, measured: str, request: Any, *, environment: Mapping[str, str] | None = None) -> int:
    """Bytes by which the memory of a process grew at most.

    Args:
        before: Code that runs before anything is measured: imports.
        measured: Code that is measured; `request` is its input.
        request: Plain data.
        environment: Variables of the process, beside this one's.
    """
    command = [sys.executable, "-c", _SCRIPT.format(before=before, measured=measured), json.dumps(request)]
    alone = {**os.environ, **(environment or {})}
    made = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
    assert made.returncode == 0, made.stderr
    return int(made.stdout.splitlines()[-1])
