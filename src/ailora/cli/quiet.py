"""Messages of libraries that no user of a command can act on."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class MessageFilter:
    """A logging filter that drops the messages that contain a text. A logger keeps equal filters once."""

    text: str

    def filter(self, record: logging.LogRecord) -> bool:
        return self.text not in str(record.msg)


#: logger -> part of the messages that it writes while torch, transformers and PEFT import what is installed beside them
_IMPORT_MESSAGES = {
    # Kernels for GPUs that this machine lacks, or for another torch; torchao computes without them.
    "torchao": "Failed to load ",
    # torchao registers enumerations in a way that torch has deprecated.
    "torch.utils._pytree": "is an Enum subclass and is now natively supported",
    # An optional kernel from the hub; bitsandbytes computes without it.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
}


def hide_library_messages() -> None:
    """Drop the messages of libraries about themselves; those about the user's model stay."""
    for logger, text in _IMPORT_MESSAGES.items():
        logging.getLogger(logger).addFilter(MessageFilter(text))
    # PEFT asks models for a property that transformers has renamed.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
