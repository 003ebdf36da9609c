"""Memory regions, flat views, port and MMIO dispatch, guest RAM."""

from qemupy.memory.core import CoreMemory, Doorbell, PyCoreMemory, RamBlock
from qemupy.memory.ram import GuestRam
from qemupy.memory.region import MemoryRegion, Ops, RegionDoorbell, transaction
from qemupy.memory.space import AddressSpace, PortSpace
from qemupy.memory.virtqueue import Chain, Virtqueue, VirtqueueError

__all__ = [
    "AddressSpace", "Chain", "CoreMemory", "Doorbell", "GuestRam", "MemoryRegion", "Ops", "PortSpace", "PyCoreMemory",
    "RamBlock", "RegionDoorbell", "Virtqueue", "VirtqueueError", "transaction",
]  # fmt: skip
