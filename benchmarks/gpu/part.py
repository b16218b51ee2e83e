"""A part of the measurements: its arguments, and the recorder of its results."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from records import append_record


@dataclass(frozen=True)
class Recorder:
    """Appends the results of one part to the common file.

    Attributes:
        part: Name of the part.
        file: JSON lines, one per result.
        device: Name of the device, as its driver gives it.
    """

    part: str
    file: Path
    device: str

    def write(self, name: str, figures: dict[str, Any], line: str) -> None:
        """Append a result and print its line of the log.

        Args:
            name: Name of the result, unique within the part.
            figures: Plain data.
            line: The result in words.
        """
        append_record(self.file, {"part": self.part, "name": name, "device": self.device} | figures)
        print(line, flush=True)


@dataclass(frozen=True)
class PartArguments:
    """Arguments of a part.

    Attributes:
        device: Device of torch.
        tiny: Small shapes and few repetitions, for a rehearsal.
        deadline: Time of day (Unix seconds) at which the part is stopped.
        recorder: For the results.
    """

    device: str
    tiny: bool
    deadline: float
    recorder: Recorder

    @property
    def seconds_left(self) -> float:
        """Seconds until the part is stopped."""
        return self.deadline - time.time()


def parse_arguments(part: str) -> PartArguments:
    """Parse the command line on which `run.py` starts a part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    return PartArguments(options.device, options.tiny, options.deadline, Recorder(part, options.results, name))
