"""Block backends. Devices know the Protocol `BlockBackend`; `open_drive` builds one from `-drive` options."""

from qemupy.backends.block.base import BlockBackend, Completion, MemoryBlock

__all__ = ["BlockBackend", "Completion", "MemoryBlock"]
