"""Workers of one study as Ray tasks, a GPU each.

    python examples/studies/study_ray.py postgresql+psycopg://user@host/studies study --workers 8

Make the study first, with `ailora study run study.yaml` on any machine (Ctrl-C is fine).
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import ray


@ray.remote(num_gpus=1, max_retries=-1)
def work(storage: str, name: str) -> None:
    """One worker; Ray starts it again when its machine dies."""
    subprocess.run([sys.executable, "-m", "ailora", "study", "work", storage, name], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage")
    parser.add_argument("name")
    parser.add_argument("--workers", type=int, default=8)
    given = parser.parse_args()
    ray.init(address="auto")
    ray.get([work.remote(given.storage, given.name) for _ in range(given.workers)])
