"""Devices that meet guest memory which lies in a snapshot's file, while the file has lost its bytes: the machine stops
with `io-error`, and after the file is back and `cont` all is as if nothing had happened. A whole machine without vCPUs;
its devices are driven by the accesses a guest would make. What a vCPU's own access does is in test_snapshots.py."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qemupy.command_line import parse
from qemupy.errors import MonitorError, PageInError
from qemupy.hw.block import ata_regs as ata
from qemupy.hw.i386 import devices, pc
from qemupy.hw.misc import fw_cfg
from qemupy.memory.core import RamExtent
from qemupy.migration.snapshots import Snapshots
from qemupy.scatter import table
from qemupy.vcpu.interp import InterpAccel
from qemupy.vm import RunState, Vm

BUS_MASTER, VIRTIO = 0xC000, 0xC100
SECTORS = b"".join(struct.pack("<I", n) * 128 for n in range(2048))


class Machine:
    def __init__(self, folder: Path) -> None:
        devices.load()
        disks = [folder / "ide.img", folder / "virtio.img"]
        for disk in disks:
            disk.write_bytes(SECTORS)
        words = ["-m", "16", "-display", "none", "-serial", "none", "-vga", "std",
                 "-drive", f"file={disks[0]},format=raw,if=ide",
                 "-drive", f"file={disks[1]},format=raw,if=virtio"]  # fmt: skip
        config, _warnings = parse(words)
        self.vm = vm = Vm(config, InterpAccel(config.ram + (64 << 20)))
        for drive in config.drives:
            vm.add_drive(drive)
        with vm.bql:
            self.board = pc.Pc(vm)
            vm.service(Snapshots)
            vm.cont()
        self.memory = vm.accel.memory
        self.files = [folder / "ram", folder / "gap"]
        self._fds: list[int] = []

    def out(self, port: int, size: int, value: int) -> None:
        self.vm.ports.write(port, size, value)

    def config(self, device: str, offset: int, size: int, value: int) -> None:
        devfn = next(devfn for devfn, found in self.board.bus if found.qdev_name == device)
        self.board.bus.config_write(devfn, offset, size, value)

    def lay_out(self, at: int | None = None) -> None:
        """All of RAM in files, as after loadvm: all of it in the one that gets lost, or only the page at `at`. (What is
        cut off a file is gone from memory too where it was written, so that the others must lie elsewhere.)"""
        size = self.memory.size
        with self.vm.bql:
            self.content = bytes(self.memory.view(0, size))
            for path in self.files:
                path.write_bytes(self.content)
                self._fds.append(os.open(path, os.O_RDWR))
            start, end = (0, size) if at is None else (at, at + 4096)
            parts = ((0, start, 0), (start, end, 1), (end, size, 0))
            extents = [RamExtent(a, b - a, self._fds[which], a) for a, b, which in parts if a < b]
            self.memory.load(extents, True)

    def lose(self) -> None:
        os.ftruncate(self._fds[1], 0)

    def give_back(self) -> None:
        self.files[1].write_bytes(self.content)

    def loop_until(self, condition: Callable[[], bool]) -> None:
        assert self.vm.loop.run_until(condition, 20)

    def stops(self) -> None:
        self.loop_until(lambda: self.vm.run_state == RunState.IO_ERROR)

    def goes_on(self) -> None:
        with self.vm.bql:
            self.vm.cont()

    def close(self) -> None:
        self.vm.close()
        for fd in self._fds:
            os.close(fd)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


def fails_and_goes_on(machine: Machine, begin: Callable[[], None], done: Callable[[], bool],
                      capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """`begin` meets the gap, twice: a `cont` before the file is back changes nothing."""
    machine.lay_out()
    machine.lose()
    with machine.vm.bql:
        begin()
    for _ in range(2):
        machine.stops()
        assert not done()
        with machine.vm.bql:
            assert machine.vm.running is False
        if machine.vm.dma.waiting:
            with pytest.raises(MonitorError, match="guest memory"):
                machine.vm.check_disks_settled()
        machine.goes_on()
    machine.stops()
    machine.give_back()
    machine.goes_on()
    machine.loop_until(done)
    assert machine.vm.running
    told = capfd.readouterr().err
    assert "Input/output error" in told and "lost" not in told and "Traceback" not in told


def ide_read(machine: Machine, address: int, table_at: int) -> None:
    """READ DMA of two sectors from sector 5."""
    out = machine.out
    for port, value in ((0x1F6, 0xE0), (0x1F2, 2), (0x1F3, 5), (0x1F4, 0), (0x1F5, 0), (0x1F7, ata.READ_DMA)):
        out(port, 1, value)
    out(BUS_MASTER + 4, 4, table_at)
    out(BUS_MASTER, 1, 8)
    out(BUS_MASTER, 1, 9)


def set_up_ide(machine: Machine) -> None:
    machine.config("piix3-ide", 0x20, 4, BUS_MASTER)
    machine.config("piix3-ide", 4, 2, 5)
    machine.out(0x3F6, 1, 0)


def test_ide_dma(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    """The table of descriptors, and the memory they name, which is the worker's."""
    dma = machine.vm.dma
    with machine.vm.bql:
        set_up_ide(machine)
        dma.write(0x5000, struct.pack("<IIII", 0x200000, 512, 0x300000, 0x80000200))
    fails_and_goes_on(
        machine,
        lambda: ide_read(machine, 0x200000, 0x5000),
        lambda: not machine.vm.ports.read(BUS_MASTER + 2, 1) & 1,
        capfd,
    )
    assert dma.read(0x200000, 512) + dma.read(0x300000, 512) == SECTORS[5 * 512 : 7 * 512]
    assert machine.vm.ports.read(0x1F7, 1) == ata.READY


def test_an_ide_command_given_up_meanwhile_stays_so(machine: Machine) -> None:
    with machine.vm.bql:
        set_up_ide(machine)
        machine.vm.dma.write(0x5000, struct.pack("<II", 0x200000, 0x80000400))
    machine.lay_out()
    machine.lose()
    with machine.vm.bql:
        ide_read(machine, 0x200000, 0x5000)
    machine.stops()
    machine.give_back()
    with machine.vm.bql:
        machine.out(BUS_MASTER, 1, 0)
        machine.vm.cont()
    machine.loop_until(lambda: not machine.vm.dma.waiting)
    assert machine.vm.dma.read(0x200000, 512) == bytes(512)


def set_up_virtio(machine: Machine) -> None:
    """The legacy interface, one queue at 1 MiB: a read of one sector is offered."""
    out, dma = machine.out, machine.vm.dma
    machine.config("virtio-blk-pci", 0x10, 4, VIRTIO)
    machine.config("virtio-blk-pci", 4, 2, 5)
    out(VIRTIO + 18, 1, 3)
    out(VIRTIO + 14, 2, 0)
    out(VIRTIO + 8, 4, 0x100)
    out(VIRTIO + 18, 1, 7)
    size = machine.vm.ports.read(VIRTIO + 12, 2)
    chain = ((0x210000, 16, 1, 1), (0x220000, 512, 3, 2), (0x230000, 1, 2, 0))
    dma.write(0x100000, b"".join(struct.pack("<QIHH", *d) for d in chain))
    dma.write(0x210000, struct.pack("<IIQ", 0, 0, 9))
    dma.write(0x230000, b"\xff")
    dma.write(0x100000 + 16 * size, struct.pack("<HHH", 0, 1, 0))


def used(machine: Machine) -> int:
    size = machine.vm.ports.read(VIRTIO + 12, 2)
    return machine.vm.dma.read_int((0x100000 + 18 * size + 6 + 0xFFF & ~0xFFF) + 2, 2)


def test_a_virtqueue_and_its_chains(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    """The ring itself, popped in C."""
    with machine.vm.bql:
        set_up_virtio(machine)

    def done() -> bool:
        return machine.vm.running and used(machine) == 1

    fails_and_goes_on(machine, lambda: machine.out(VIRTIO + 16, 2, 0), done, capfd)
    assert machine.vm.dma.read(0x220000, 512) == SECTORS[9 * 512 : 10 * 512]
    assert machine.vm.dma.read(0x230000, 1) == b"\0"


@pytest.mark.parametrize("gap", [0x210000, 0x220000, 0x230000])
def test_one_page_of_a_chain(machine: Machine, gap: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Header, data or status alone cannot be read."""
    with machine.vm.bql:
        set_up_virtio(machine)
    machine.lay_out(gap)
    machine.lose()
    with machine.vm.bql:
        machine.out(VIRTIO + 16, 2, 0)
    machine.stops()
    assert used(machine) == 0
    machine.give_back()
    machine.goes_on()
    machine.loop_until(lambda: used(machine) == 1)
    assert machine.vm.dma.read(0x220000, 512) == SECTORS[9 * 512 : 10 * 512]
    assert "lost" not in capfd.readouterr().err


def test_fw_cfg(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    """DMA made by Python, in the handler of a port."""
    dma = machine.vm.dma
    control = fw_cfg.SIGNATURE << 16 | fw_cfg.DMA_SELECT | fw_cfg.DMA_READ
    with machine.vm.bql:
        dma.write(0x4000, struct.pack(">IIQ", control, 4, 0x200000))

    def begin() -> None:
        machine.out(0x514, 4, 0)
        machine.out(0x518, 4, int.from_bytes((0x4000).to_bytes(4, "big"), "little"))

    def done() -> bool:
        return machine.vm.running and dma.read(0x4000, 4) == bytes(4)

    fails_and_goes_on(machine, begin, done, capfd)
    assert dma.read(0x200000, 4) == b"QEMU"


def test_accesses_that_answer_at_once(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    """DMA, video memory, whole views and lists: each says so and has done nothing. With a vCPU behind it the
    instruction starts again."""
    vm, dma, memory = machine.vm, machine.vm.dma, machine.memory
    with vm.bql:
        dma.write(0x6000, b"content")
    machine.lay_out()
    machine.lose()
    attempts: tuple[Callable[[], object], ...] = (
        lambda: dma.read(0x6000, 7),
        lambda: dma.write(0x6000, b"C"),
        lambda: dma.views(table(((0x6000, 7),)), True),
        lambda: dma.views(table(((0x6000, 7), (0xFFF00000000, 1))), True),
        lambda: vm.memory.read(0xA0000, 1),
        lambda: vm.memory.write(0xB8000, 2, 0x41),
        lambda: vm.memory.read(0x6000, 4),
        lambda: memory.nonzero(0, memory.size),
        lambda: memory.view(0, memory.size),
    )
    for attempt in attempts:
        with vm.bql, pytest.raises(PageInError):
            attempt()
    machine.stops()
    machine.give_back()
    assert dma.read(0x6000, 7) == b"content"
    assert "lost" not in capfd.readouterr().err
