"""Memory regions, flat views, port and MMIO dispatch, guest RAM."""

from qemupy.memory.core import CoreMemory, PyCoreMemory, RamBlock
from qemupy.memory.ram import GuestRam
from qemupy.memory.region import MemoryRegion, Ops, transaction
from qemupy.memory.space import AddressSpace, PortSpace

__all__ = [
    "AddressSpace", "CoreMemory", "GuestRam", "MemoryRegion", "Ops", "PortSpace", "PyCoreMemory", "RamBlock",
    "transaction",
]  # fmt: skip
