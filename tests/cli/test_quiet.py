"""Which messages of libraries a command hides, and which come through."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest

from ailora.cli.quiet import hide_library_messages


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops")]
    filters = [logger.filters[:] for logger in loggers]
    yield
    for logger, before in zip(loggers, filters, strict=True):
        logger.filters[:] = before


def test_what_libraries_say_of_themselves_is_hidden(caplog: pytest.LogCaptureFixture) -> None:
    hide_library_messages()
    logging.getLogger("torchao").warning("Failed to load _C.so: no such device")
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load CPU gemm_4bit_forward from %s", "a hub")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hide_library_messages()
        warnings.warn("`is_gradient_checkpointing` is deprecated and will be removed", FutureWarning, stacklevel=1)
    assert not caplog.messages
    assert not caught


def test_what_they_say_of_a_model_comes_through(caplog: pytest.LogCaptureFixture) -> None:
    hide_library_messages()
    hide_library_messages()  # in one process twice: one filter
    said = {"torchao": "your weight cannot be quantized", "bitsandbytes.backends.cpu.ops": "a slow path is taken"}
    for logger, message in said.items():
        logging.getLogger(logger).warning(message)
    assert caplog.messages == list(said.values())
    assert len(logging.getLogger("torchao").filters) == 1
    # What a checkpoint lacks is the user's to know.
    assert not logging.getLogger("transformers.modeling_utils").filters
    with pytest.warns(FutureWarning, match="head_mask"):
        warnings.warn("head_mask is deprecated", FutureWarning, stacklevel=1)
