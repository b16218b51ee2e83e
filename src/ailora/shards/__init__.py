"""Safetensors files on a disk: checked headers, checkpoints of many shards, writing that a kill cannot spoil."""

from ailora.shards.checkpoint import Checkpoint
from ailora.shards.durable import replacing, write_bytes, write_text
from ailora.shards.header import Header, StoredTensor, read_header
from ailora.shards.layout import Planned, header_bytes, tensor_bytes
from ailora.shards.reading import read_blocks, read_rows, read_tensor, read_tensors

__all__ = [
    "Checkpoint",
    "Header",
    "Planned",
    "StoredTensor",
    "header_bytes",
    "read_blocks",
    "read_header",
    "read_rows",
    "read_tensor",
    "read_tensors",
    "replacing",
    "tensor_bytes",
    "write_bytes",
    "write_text",
]
