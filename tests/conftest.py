"""Shared fixtures. Shapes in `ailora.spectral` and `ailora.inits` are checked while tests run."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests neither use nor fill the user's cache.
os.environ["AILORA_CACHE"] = tempfile.mkdtemp(prefix="ailora-cache-")

from jaxtyping import install_import_hook

with install_import_hook(["ailora.spectral", "ailora.inits"], "beartype.beartype"):
    import ailora

from pathlib import Path

import hypothesis
import pytest
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
# Fewer examples before a commit than in CI; tests that say how many they need keep their number.
hypothesis.settings.register_profile("fast", max_examples=25, deadline=None)
hypothesis.settings.register_profile("full", max_examples=100, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))
# Two workers fill two cores: with two threads each, tiny products wait for threads that do not run (8 times as long).
torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def shared() -> Path:
    """The folder with the real data sets and the small Llama."""
    if not SHARED.is_dir():
        pytest.skip("the real data of ../shared is not here")
    return SHARED


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def presets() -> tuple[str, ...]:
    return tuple(ailora.PRESETS)
