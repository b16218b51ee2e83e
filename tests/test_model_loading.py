"""Where models are loaded."""

from __future__ import annotations

import pytest
import torch

from ailora.model_loading import default_device


@pytest.mark.parametrize(("available", "device"), [(True, "cuda"), (False, "cpu")])
def test_an_accelerator_counts_where_it_can_be_used(
    monkeypatch: pytest.MonkeyPatch, *, available: bool, device: str
) -> None:
    """A build of torch for CUDA names CUDA on a machine without a driver too."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: available)
    assert default_device() == torch.device(device)
