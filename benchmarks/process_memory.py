"""Memory of this process, read from Linux. Imports nothing large, because some benchmarks measure imports."""

from __future__ import annotations

from pathlib import Path


def read_memory(field: str = "VmHWM") -> int:
    """Return a size from `/proc/self/status` in bytes.

    `ru_maxrss` is unsuitable: it starts at the peak of the process that started this one.

    Args:
        field: `VmHWM` for the peak of the resident memory, `VmRSS` for its present size.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) * 1024
