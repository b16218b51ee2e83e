"""The dtypes that artefacts are written in, by name."""

from __future__ import annotations

import torch

from ailora.errors import unknown_name

_DTYPES = {
    **{"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16},
    **{"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16},
}


def parse_dtype(name: str) -> torch.dtype:
    """The dtype that a name stands for: fp32, bf16, fp16, or torch's names.

    Raises:
        InputError: another name.
    """
    if not isinstance(name, str) or name not in _DTYPES:
        raise unknown_name("dtype", name, _DTYPES)
    return _DTYPES[name]
