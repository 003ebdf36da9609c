"""Virtio: queues in guest memory, the device behind them, and its PCI transport. See `device.py` for the form."""

from qemupy.hw.virtio.device import VirtioDevice, VirtioHost, VirtQueue
from qemupy.hw.virtio.pci import VirtioPci

__all__ = ["VirtQueue", "VirtioDevice", "VirtioHost", "VirtioPci"]
