"""Records of results: JSON lines that are on disk as soon as they are measured. Imports no torch."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


def append_record(file: Path, record: dict[str, Any]) -> None:
    """Append a record with the time of day (Unix seconds); return when it is on disk."""
    line = json.dumps({"time": round(time.time(), 3)} | record, default=str) + "\n"
    with file.open("a", encoding="utf-8") as stream:
        stream.write(line)
        stream.flush()
        # A machine that is cut off keeps only what reached its disk.
        os.fsync(stream.fileno())
