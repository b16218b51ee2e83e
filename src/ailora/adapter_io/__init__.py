"""Adapters on disk: save, read, resume and measure PEFT's files with our metadata."""

from ailora.adapter_io.resume import resume
from ailora.adapter_io.save_adapter import restore_base, save_adapter

__all__ = ["restore_base", "resume", "save_adapter"]
