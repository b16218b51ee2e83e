"""Hide library messages that require no action from users."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class MessageFilter:
    """Logging filter that drops messages containing `text`."""

    # Dataclasses are compared by value, and a logger adds equal filters only once.
    text: str

    def filter(self, record: logging.LogRecord) -> bool:
        return self.text not in str(record.msg)


#: Logger -> text of messages to hide, which appear when torch, transformers and PEFT import optional packages.
_IMPORT_MESSAGES = {
    # Kernels for a different GPU or version of torch. torchao works without these kernels.
    "torchao": "Failed to load ",
    # torchao registers enumerations in a way that torch has deprecated.
    "torch.utils._pytree": "is an Enum subclass and is now natively supported",
    # Optional kernel from the hub. bitsandbytes works without this kernel.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
}


def hide_loading_messages() -> None:
    """Hide transformers' loading progress, and its report of missing heads: runs train new heads from scratch."""
    # Imported here, because commands that load no model must not pay for transformers.
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.getLogger("transformers.modeling_utils").addFilter(MessageFilter("LOAD REPORT"))


def hide_library_messages() -> None:
    """Hide messages in which libraries comment on their own code. Keep messages about the user's model."""
    for logger, text in _IMPORT_MESSAGES.items():
        logging.getLogger(logger).addFilter(MessageFilter(text))
    # PEFT reads a property of models by a name that transformers has deprecated.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
