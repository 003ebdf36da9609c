"""MSI and MSI-X: capabilities, masks, pending bits, 64-bit BARs, and saving."""

from __future__ import annotations

import pytest

from qemupy.hw.core import nested, transient
from qemupy.hw.pci import PciBus, PciDevice
from qemupy.hw.pci.msi import Msi, Msix
from qemupy.memory import MemoryRegion


class Card(PciDevice):
    vendor_id, device_id = 0x1234, 0x5678
    msix: Msix = nested(Msix)
    msi: Msi | None = transient(None)

    def realize(self) -> None:
        super().realize()
        self.msi = Msi(self, messages=4)
        self.msix.attach(self, 1, 200)
        self.add_bar(2, MemoryRegion("high", 1 << 14), prefetch=True, wide=True)

    def config_written(self, offset: int, size: int) -> None:
        self.msix.config_written()

    def reset(self) -> None:
        super().reset()
        self.msix.config_written()

    def post_load(self) -> None:
        super().post_load()
        self.msix.config_written()


class Slot:
    def __init__(self) -> None:
        self.bus = PciBus(MemoryRegion("io", 0x10000), MemoryRegion("pci", 1 << 48))
        self.sent: list[tuple[int, int]] = []
        self.bus.send_message = lambda address, data: self.sent.append((address, data))
        self.card = Card()
        self.devfn = self.bus.plug(self.card)
        self.card.config_write(4, 2, 6)

    def take(self) -> list[tuple[int, int]]:
        sent, self.sent[:] = list(self.sent), []
        return sent

    def program(self, vector: int, address: int, data: int, control: int = 0) -> None:
        table = self.card.msix
        for at, value in ((0, address & 0xFFFFFFFF), (4, address >> 32), (8, data), (12, control)):
            table.write(16 * vector + at, 4, value)


@pytest.fixture
def slot() -> Slot:
    return Slot()


MSI, MSIX = 0x40, 0x50


def test_the_capabilities(slot: Slot) -> None:
    config = slot.card.config
    assert config[0x06] & 0x10 and config[0x34] == MSIX
    assert (config[MSIX], config[MSIX + 1], config[MSI], config[MSI + 1]) == (0x11, MSI, 0x05, 0)
    assert config[MSIX + 2 : MSIX + 12] == bytes.fromhex("c700 01000000 810c0000")
    slot.card.config_write(MSI + 2, 2, 0xFFFF)
    assert slot.card.config_read(MSI + 2, 2) == 0x00F5  # 64 bits, 4 of 4 messages wanted, enabled
    slot.card.config_write(MSIX, 4, 0xFFFFFFFF)
    assert slot.card.config_read(MSIX, 4) == 0xC0C70000 | MSI << 8 | 0x11


def test_msi_tells_messages_apart_by_the_low_bits(slot: Slot) -> None:
    card = slot.card
    assert card.msi is not None and not card.msi.enabled
    card.config_write(MSI + 4, 4, 0xFEE01003)
    card.config_write(MSI + 12, 2, 0x4150)
    card.config_write(MSI + 2, 2, 0x21)  # enabled, 4 messages
    card.msi.notify(3)
    card.config_write(MSI + 2, 2, 0x01)
    card.msi.notify(3)
    assert slot.take() == [(0xFEE01000, 0x4153), (0xFEE01000, 0x4150)]


def test_only_a_bus_master_sends(slot: Slot) -> None:
    slot.program(0, 0xFEE00000, 0x31)
    slot.card.config_write(MSIX + 2, 2, 0x8000)
    slot.card.config_write(4, 2, 2)
    slot.card.msix.notify(0)
    assert slot.take() == []
    slot.card.config_write(4, 2, 6)
    slot.card.msix.notify(0)
    assert slot.take() == [(0xFEE00000, 0x31)]


def test_messages_outside_of_the_apics_window_go_nowhere(slot: Slot) -> None:
    slot.program(0, 0x1000, 0x31)
    slot.program(1, 0x1_FEE00000, 0x31)
    slot.card.config_write(MSIX + 2, 2, 0x8000)
    slot.card.msix.notify(0)
    slot.card.msix.notify(1)
    assert slot.take() == []


def test_masks_and_pending_bits(slot: Slot) -> None:
    card = slot.card
    card.config_write(MSIX + 2, 2, 0x8000)
    card.msix.notify(150)  # masked since power-on
    assert card.msix.read(0xC80 + 16, 8) == 1 << 22
    slot.program(150, 0xFEE00000, 0x96)
    assert slot.take() == [(0xFEE00000, 0x96)] and card.msix.read(0xC80 + 16, 8) == 0
    card.config_write(MSIX + 2, 2, 0xC000)  # the whole function
    card.msix.notify(150)
    card.msix.notify(150)
    assert slot.take() == []
    card.config_write(MSIX + 2, 2, 0x8000)
    assert slot.take() == [(0xFEE00000, 0x96)]
    card.msix.notify(5000)
    assert slot.take() == []


def test_odd_accesses(slot: Slot) -> None:
    table = slot.card.msix
    before = bytes(table.table)
    for offset, size in ((0, 1), (2, 4), (0, 2), (0xC80, 4), (1 << 20, 4)):
        table.write(offset, size, 0xFF)
    assert bytes(table.table) == before
    assert table.read(1 << 20, 4) == 0
    table.write(0, 8, 0x1122334455667788)
    assert table.read(4, 4) == 0x11223344


def test_save_and_load(slot: Slot) -> None:
    slot.program(7, 0xFEE0F000, 0x77)
    slot.card.config_write(MSIX + 2, 2, 0xC000)
    slot.card.msix.notify(7)
    other = Slot()
    other.card.load(slot.card.save())
    assert other.card.save() == slot.card.save()
    assert other.card.msix.enabled
    other.card.config_write(MSIX + 2, 2, 0x8000)
    assert other.take() == [(0xFEE0F000, 0x77)]
    other.card.reset()
    assert not other.card.msix.enabled and other.card.msix.read(7 * 16 + 12, 4) == 1


def test_a_wide_bar(slot: Slot) -> None:
    card = slot.card
    card.config_write(0x18, 4, 0xFFFFFFFF)
    card.config_write(0x1C, 4, 0xFFFFFFFF)
    assert card.config_read(0x18, 8) == 0xFFFFFFFFFFFFC00C
    assert card.bars[1].address is None
    card.config_write(0x18, 4, 0x4000)
    card.config_write(0x1C, 4, 0x12)
    assert card.bars[1].address == 0x12_0000_4000
