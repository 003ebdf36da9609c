"""Message-signalled interrupts: the MSI and MSI-X capabilities (PCI 3.0, 6.8).

A message is a 32-bit memory write, by which the device tells a local APIC vector and destination. MSI keeps address and
data in the configuration space, MSI-X in a table of the device's own memory, with a mask bit for each vector and an
array of the bits that are pending behind it.
"""

from __future__ import annotations

from qemupy.hw.core import State, fifo, log_guest_error, transient
from qemupy.hw.pci import regs
from qemupy.hw.pci.device import PciDevice
from qemupy.memory import MemoryRegion

ENABLE, FUNCTION_MASK = 0x80, 0x40  # of the high byte of MSI-X's control word
MAX_VECTORS = 2048
ENTRY = 16
MASKED = 1  # of an entry's vector control, its byte 12


class Msix(State):
    """Of one function. The device nests it, and calls `attach`, `config_written` and `notify`."""

    table: bytearray = fifo(MAX_VECTORS * ENTRY)
    pending: bytearray = fifo(MAX_VECTORS // 8)
    vectors: int = transient(0)
    enabled: bool = transient(False)
    _function_masked: bool = transient(False)
    _device: PciDevice | None = transient(None)
    _control: int = transient(0)  # offset of the control word's high byte
    _pending_at: int = transient(0)

    def attach(self, device: PciDevice, bar: int, vectors: int) -> None:
        """Give `device` the capability and, in BAR `bar`, the table with the pending bits behind it, where QEMU has
        them: in the second half of a page as long as the table fits into the first."""
        if not 1 <= vectors <= MAX_VECTORS:
            raise ValueError(f"{vectors} MSI-X vectors")
        self._device, self.vectors = device, vectors
        self._pending_at = max(vectors * ENTRY, 2048)
        size = max(4096, 1 << (self._pending_at + (vectors // 8 + 1) * 8 - 1).bit_length())
        body = (vectors - 1).to_bytes(2, "little") + bar.to_bytes(4, "little")
        body += (self._pending_at | bar).to_bytes(4, "little")
        at = device.add_capability(regs.CAP_MSIX, body, bytes((0, ENABLE | FUNCTION_MASK)))
        self._control = at + 3
        device.add_bar(bar, MemoryRegion.mmio(f"{device.qdev_name}-msix", size, self))
        self.reset()

    def reset(self) -> None:
        """Every vector is masked; the capability's control word is the configuration space's matter."""
        super().reset()
        self.table[:] = (bytes(12) + bytes((MASKED, 0, 0, 0))) * self.vectors
        self.pending[:] = bytes((self.vectors + 63) // 64 * 8)
        self.enabled = self._function_masked = False

    def post_load(self) -> None:
        size, bits = self.vectors * ENTRY, (self.vectors + 63) // 64 * 8
        self.table[:] = self.table[:size].ljust(size, b"\0")
        self.pending[:] = self.pending[:bits].ljust(bits, b"\0")

    def config_written(self) -> None:
        """The control word may have changed: by the guest, by reset or load."""
        if self._device is None:
            return
        control = self._device.config[self._control]
        self.enabled = bool(control & ENABLE)
        self._function_masked = bool(control & FUNCTION_MASK)
        if self.enabled and not self._function_masked:
            for vector in range(self.vectors):
                self._send_pending(vector)

    def notify(self, vector: int) -> None:
        """Interrupt number `vector` happened. Only while `enabled`."""
        if vector >= self.vectors or self._device is None:
            return
        at = vector * ENTRY
        if self._function_masked or self.table[at + 12] & MASKED:
            self.pending[vector >> 3] |= 1 << (vector & 7)
            return
        entry = self.table[at : at + 12]
        self._device.send_message(int.from_bytes(entry[:8], "little"), int.from_bytes(entry[8:], "little"))

    def _send_pending(self, vector: int) -> None:
        if self.pending[vector >> 3] >> (vector & 7) & 1 and not self.table[vector * ENTRY + 12] & MASKED:
            self.pending[vector >> 3] &= ~(1 << (vector & 7))
            self.notify(vector)

    # The BAR

    def read(self, offset: int, size: int) -> int:
        if offset < len(self.table):
            return int.from_bytes(self.table[offset : offset + size], "little")
        at = offset - self._pending_at
        return int.from_bytes(self.pending[at : at + size], "little") if at >= 0 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Dwords and qwords (6.8.2); the pending bits are read-only."""
        if size < 4 or offset % size or offset + size > len(self.table):
            log_guest_error("MSI-X: write of %d bytes at %#x", size, offset)
            return
        self.table[offset : offset + size] = value.to_bytes(size, "little")
        if self.enabled and not self._function_masked:
            self._send_pending(offset // ENTRY)


class Msi:
    """The MSI capability with 64-bit addresses and up to 32 messages, without masks; its state is the configuration
    space."""

    def __init__(self, device: PciDevice, messages: int = 1) -> None:
        shift = messages.bit_length() - 1
        if messages != 1 << shift or shift > 5:
            raise ValueError(f"{messages} MSI messages")
        self._device, self._limit = device, shift
        control = 0x80 | shift << 1
        body = control.to_bytes(2, "little") + bytes(10)
        self._at = device.add_capability(regs.CAP_MSI, body, b"\x71\0\xfc" + b"\xff" * 7 + b"\xff\xff")

    def _field(self, offset: int, size: int) -> int:
        return int.from_bytes(self._device.config[self._at + offset : self._at + offset + size], "little")

    @property
    def enabled(self) -> bool:
        return bool(self._field(2, 2) & 1)

    def notify(self, message: int) -> None:
        """Only while `enabled`. The low bits of the data tell apart as many messages as the guest allowed."""
        allowed = min(self._field(2, 2) >> 4 & 7, self._limit)
        data = self._field(12, 2)
        low = (1 << allowed) - 1
        self._device.send_message(self._field(4, 8), data & ~low | message & low)


__all__ = ["Msi", "Msix"]
