"""fw_cfg: selector, data port, file directory, DMA commands."""

from __future__ import annotations

import struct

import pytest
from fakes import round_trip

from qemupy.errors import DeviceError
from qemupy.hw.core import FlatDma
from qemupy.hw.misc import fw_cfg
from qemupy.hw.misc.fw_cfg import FwCfg


def make(dma: FlatDma | None = None) -> FwCfg:
    dev = FwCfg(dma=dma or FlatDma())
    dev.add_u16(fw_cfg.NB_CPUS, 3)
    dev.add_string(fw_cfg.CMDLINE_DATA, "console=ttyS0")
    dev.add_file("opt/b", b"bee")
    dev.add_file("etc/a", lambda: b"evaluated")
    return dev


def read_item(dev: FwCfg, key: int, size: int) -> bytes:
    bank = dev.bank()
    bank.write(0, 2, key)
    return bytes(bank.read(1, 1) for _ in range(size))


def test_legacy_items_and_the_end() -> None:
    dev = make()
    assert read_item(dev, fw_cfg.SIGNATURE, 6) == b"QEMU\0\0"
    assert read_item(dev, fw_cfg.ID, 4) == b"\3\0\0\0"
    assert read_item(dev, fw_cfg.NB_CPUS, 2) == b"\3\0"
    assert read_item(dev, 0x7777, 2) == b"\0\0"
    dev.bank().write(0, 2, fw_cfg.CMDLINE_DATA)
    assert dev.bank().read_string(1, 1, 16) == b"console=ttyS0\0\0\0"


def test_directory_is_sorted_and_keys_match() -> None:
    dev = make()
    raw = read_item(dev, fw_cfg.FILE_DIR, 4 + 2 * 64)
    assert struct.unpack_from(">I", raw) == (2,)
    entries = [struct.unpack_from(">IHH56s", raw, 4 + 64 * i) for i in range(2)]
    assert [(size, key, name.rstrip(b"\0")) for size, key, _, name in entries] == [
        (9, 0x20, b"etc/a"),
        (3, 0x21, b"opt/b"),
    ]
    assert read_item(dev, 0x20, 9) == b"evaluated" and dev.file_key("opt/b") == 0x21
    with pytest.raises(DeviceError, match="too long"):
        dev.add_file("x" * 56, b"")


def test_callable_is_evaluated_once_until_reset() -> None:
    dev = make()
    calls: list[int] = []

    def content() -> bytes:
        calls.append(1)
        return bytes([len(calls)])

    dev.add_file("etc/calls", content)
    key = dev.file_key("etc/calls")
    read_item(dev, fw_cfg.FILE_DIR, 4)
    assert read_item(dev, key, 1) == read_item(dev, key, 1) == b"\1"
    dev.reset()
    assert read_item(dev, key, 1) == b"\2"


def dma_command(dev: FwCfg, control: int, length: int, address: int) -> int:
    dev.dma.write(0x1000, struct.pack(">IIQ", control, length, address))
    bank = dev.bank("dma")
    bank.write(0, 4, 0)
    bank.write(4, 4, int.from_bytes((0x1000).to_bytes(4, "big"), "little"))
    return int(struct.unpack(">I", dev.dma.read(0x1000, 4))[0])


def test_dma_read_select_skip() -> None:
    dev = make()
    assert dev.bank("dma").read(0, 4).to_bytes(4, "little") + dev.bank("dma").read(4, 4).to_bytes(4, "little") == (
        b"QEMU CFG"
    )
    key = dev.file_key("etc/a")
    dev.dma.write(0x2000, b"\xee" * 16)
    assert dma_command(dev, key << 16 | fw_cfg.DMA_SELECT | fw_cfg.DMA_SKIP, 5, 0) == 0
    assert dma_command(dev, fw_cfg.DMA_READ, 6, 0x2000) == 0
    assert dev.dma.read(0x2000, 8) == b"ated\0\0\xee\xee"


def test_dma_write_only_where_allowed() -> None:
    dev = make()
    target = bytearray(8)
    written: list[int] = []
    dev.add_file("etc/vmgenid_addr", target, on_write=lambda: written.append(1))
    dev.dma.write(0x3000, b"ABCDEFGH")
    select = fw_cfg.DMA_SELECT | fw_cfg.DMA_WRITE
    assert dma_command(dev, dev.file_key("etc/vmgenid_addr") << 16 | select, 8, 0x3000) == 0
    assert target == b"ABCDEFGH" and written == [1]
    assert dma_command(dev, fw_cfg.DMA_WRITE, 1, 0x3000) == fw_cfg.DMA_ERROR
    assert dma_command(dev, dev.file_key("opt/b") << 16 | select, 1, 0x3000) == fw_cfg.DMA_ERROR


def test_round_trip_in_the_middle_of_an_item() -> None:
    dev = make()
    assert read_item(dev, dev.file_key("etc/a"), 4) == b"eval"
    fresh = round_trip(dev, make)
    assert fresh.bank().read(1, 1) == ord("u")
