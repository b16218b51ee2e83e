"""Safetensors files, single or sharded: validated headers, streamed reading and writing."""

from ailora.safetensors_io.checkpoint import Checkpoint
from ailora.safetensors_io.header import Header, StoredTensor, read_header
from ailora.safetensors_io.header_writer import TensorSpec, header_bytes, tensor_bytes
from ailora.safetensors_io.reader import read_blocks, read_rows, read_tensor, read_tensors

__all__ = [
    "Checkpoint",
    "Header",
    "StoredTensor",
    "TensorSpec",
    "header_bytes",
    "read_blocks",
    "read_header",
    "read_rows",
    "read_tensor",
    "read_tensors",
    "tensor_bytes",
]
