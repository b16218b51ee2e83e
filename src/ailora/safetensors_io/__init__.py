"""Safetensors files, single or sharded: validated headers, streamed reading and writing."""

from ailora.safetensors_io.checkpoint import Checkpoint
from ailora.safetensors_io.header import Header, StoredTensor, parse_dtype, read_header
from ailora.safetensors_io.reader import read_blocks, read_rows, read_tensor
from ailora.safetensors_io.writer import TensorSpec, header_bytes, tensor_bytes, write_tensors

__all__ = [
    "Checkpoint",
    "Header",
    "StoredTensor",
    "TensorSpec",
    "header_bytes",
    "parse_dtype",
    "read_blocks",
    "read_header",
    "read_rows",
    "read_tensor",
    "tensor_bytes",
    "write_tensors",
]
