"""Hide messages from libraries on which users need not act."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class MessageFilter:
    """Logging filter against messages with a certain text."""

    # A dataclass, because a logger adds equal filters only once.
    text: str

    def filter(self, record: logging.LogRecord) -> bool:
        return self.text not in str(record.msg)


#: Logger -> text in its messages while torch, transformers and PEFT import optional packages.
_IMPORT_MESSAGES = {
    # Kernels for a different GPU or version of torch. torchao works without these kernels.
    "torchao": "Failed to load ",
    # torchao registers enumerations in a way that torch has deprecated.
    "torch.utils._pytree": "is an Enum subclass and is now natively supported",
    # Optional kernel from the hub. bitsandbytes works without this kernel.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
}


def hide_loading_messages() -> None:
    """Hide transformers' progress of loading, and its report of a missing head, which is trained from scratch."""
    # Commands that load no model must not pay for transformers.
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.getLogger("transformers.modeling_utils").addFilter(MessageFilter("LOAD REPORT"))


def hide_library_messages() -> None:
    """Drop messages of libraries about their own code. Messages about the user's model stay."""
    for logger, text in _IMPORT_MESSAGES.items():
        logging.getLogger(logger).addFilter(MessageFilter(text))
    # PEFT reads a property of models that transformers has renamed.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
