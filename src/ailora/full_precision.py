"""Matrix products in the precision of their inputs, whatever precision the caller has chosen for training."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Protocol

import torch


@contextmanager
def full_precision(device: torch.device) -> Generator[None, None, None]:
    """Compute matrix products of float32 inputs in full float32 precision inside the context.

    Under autocast, the products would run in half precision. `torch.set_float32_matmul_precision` and `training.tf32`
    round float32 inputs to 7 or 10 bits of mantissa, on GPUs and on CPUs with bfloat16 units. These settings are
    global, so the context changes the products of other threads too. Inside the context, torch refuses to read its
    older flag `allow_tf32`.

    Args:
        device: Device of the matrices.
    """
    with torch.autocast(device.type, enabled=False), _EXACT_PRODUCTS.selected():
        yield


class _ExactProducts:
    """Global precision of matrix products, set by the first of overlapping contexts, and restored by the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_inside = 0
        self._restore: Callable[[], None] = lambda: None

    @contextmanager
    def selected(self) -> Generator[None, None, None]:
        """Compute exact products inside the context."""
        with self._lock:
            if not self._n_inside:
                self._restore = _select_exact_products()
            self._n_inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_inside -= 1
                if not self._n_inside:
                    self._restore()


_EXACT_PRODUCTS = _ExactProducts()


class _MatmulSettings(Protocol):
    """Settings of a backend for matrix products, `torch.backends.*.matmul`."""

    fp32_precision: str


def _select_exact_products() -> Callable[[], None]:
    """Select exact products, and return a function that restores the earlier setting."""
    backends: list[Any] = [getattr(backend, "matmul", None) for backend in (torch.backends.cuda, torch.backends.mkldnn)]
    if not all(hasattr(backend, "fp32_precision") for backend in backends):
        # torch before 2.9 has a single setting for all backends, which later versions may refuse to read.
        previous = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        return lambda: torch.set_float32_matmul_precision(previous)
    precisions = [_clear_own_precision(backend) for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"

    def restore() -> None:
        for backend, precision in zip(backends, precisions, strict=True):
            backend.fp32_precision = precision

    return restore


def _clear_own_precision(backend: _MatmulSettings) -> str:
    """Let a backend inherit torch's global precision. Return its own former precision, `none` if it had none."""
    # `fp32_precision` returns an inherited precision too. If `restore` wrote that value, the backend would no longer
    # follow changes of the global precision.
    effective = backend.fp32_precision
    backend.fp32_precision = "none"
    return "none" if backend.fp32_precision == effective else effective
