"""Hide messages of libraries that need no action of the user."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class MessageFilter:
    """Logging filter that drops messages with a text; a dataclass, as a logger adds equal filters only once."""

    text: str

    def filter(self, record: logging.LogRecord) -> bool:
        return self.text not in str(record.msg)


#: Logger -> part of its messages while torch, transformers and PEFT import optional packages.
_IMPORT_MESSAGES = {
    # Kernels for GPUs that this machine lacks, or for another torch; torchao computes without them.
    "torchao": "Failed to load ",
    # torchao registers enumerations in a way that torch has deprecated.
    "torch.utils._pytree": "is an Enum subclass and is now natively supported",
    # An optional kernel from the hub; bitsandbytes computes without it.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
}


def hide_library_messages() -> None:
    """Drop the messages of libraries about themselves; messages about the user's model stay."""
    for logger, text in _IMPORT_MESSAGES.items():
        logging.getLogger(logger).addFilter(MessageFilter(text))
    # PEFT asks models for a property that transformers has renamed.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
