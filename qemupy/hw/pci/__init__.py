"""The PCI bus: what PCI devices are made of and how they are plugged. See `device.py` for the form."""

from qemupy.hw.pci.bus import PciBus, parse_addr
from qemupy.hw.pci.device import Bar, PciDevice
from qemupy.hw.pci.host import PciHost

__all__ = ["Bar", "PciBus", "PciDevice", "PciHost", "parse_addr"]
