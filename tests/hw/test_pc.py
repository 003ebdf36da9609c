"""The pc board on a vCPU that runs nothing: memory map, PCI functions, CMOS, fw_cfg, power."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from qemupy.config import Config, DriveConfig, parse_drive
from qemupy.errors import ConfigError
from qemupy.hw.i386 import pc, pc_devices
from qemupy.hw.i386.pc_memory import split_ram
from qemupy.memory import transaction
from qemupy.records import replace
from qemupy.vcpu.accel import FakeAccel
from qemupy.vm import Vm

BIOS = bytes(0xFFF0) + b"\xea\x5b\xe0\x00\xf0" + bytes(11)
Make = Callable[..., pc.Pc]


@pytest.fixture
def make(tmp_path: object) -> Iterator[Make]:
    path = f"{tmp_path}/bios.bin"
    with open(path, "wb") as file:
        file.write(BIOS)
    made: list[Vm] = []

    def build(**changes: object) -> pc.Pc:
        config = replace(Config(ram=32 << 20, bios=path), **changes)  # type: ignore[arg-type]
        vm = Vm(config, FakeAccel())
        made.append(vm)
        for drive in config.drives:
            vm.add_drive(drive)
        with vm.bql, transaction():
            board = pc.Pc(vm)
        with vm.bql:
            vm.reset()
        return board

    yield build
    for vm in made:
        vm.close()


def config_read(board: pc.Pc, devfn: int, at: int) -> int:
    board.vm.ports.write(0xCF8, 4, 0x80000000 | devfn << 8 | at)
    return board.vm.ports.read(0xCFC, 4)


def cmos(board: pc.Pc, at: int) -> int:
    board.vm.ports.write(0x70, 1, at)
    return board.vm.ports.read(0x71, 1)


def fw_cfg(board: pc.Pc, key: int, size: int) -> bytes:
    board.vm.ports.write(0x510, 2, key)
    return board.vm.ports.read_string(0x511, 1, size)


def test_ram_split_as_qemu() -> None:
    gib = 1 << 30
    assert split_ram(3 * gib).above_4g == 0
    assert split_ram(0xE0000000).below_4g == 3 * gib and split_ram(4 * gib).above_4g == gib


def test_memory_map(make: Make) -> None:
    memory = make().vm.memory
    assert memory.read(0xFFFFFFF0, 4) == memory.read(0xFFFF0, 4) == 0x00E05BEA
    memory.write(0x7C00, 4, 0x12345678)
    assert memory.read(0x7C00, 4) == 0x12345678
    assert memory.read(32 << 20, 4) == 0xFFFFFFFF


def test_pci_functions(make: Make) -> None:
    board = make()
    found = {devfn: config_read(board, devfn, 0) for devfn in range(256) if config_read(board, devfn, 0) != 0xFFFFFFFF}
    expected = {0: 0x12378086, 8: 0x70008086, 9: 0x70108086, 11: 0x71138086}
    assert expected.items() <= found.items()


def test_cmos(make: Make) -> None:
    board = make(boot={"order": "dc"})
    assert cmos(board, 0x34) | cmos(board, 0x35) << 8 == 256
    assert cmos(board, 0x3D) == 0x23
    assert cmos(make(boot={"once": "d"}), 0x3D) == 3


def test_boot_once_lasts_until_the_second_reset(make: Make) -> None:
    board = make(boot={"once": "d", "order": "c"})
    assert cmos(board, 0x3D) == 3
    board.vm.reset()
    assert cmos(board, 0x3D) == 2


def test_fw_cfg(make: Make) -> None:
    board = make(nographic=True)
    assert fw_cfg(board, 0, 4) == b"QEMU" and fw_cfg(board, 4, 2) == b"\1\0"
    directory = fw_cfg(board, 0x19, 4 + 64 * 16)
    assert b"etc/e820\0" in directory and b"etc/system-states\0" in directory


def test_power_off_and_reset_requests(make: Make) -> None:
    board = make()
    asked: list[str] = []
    board.vm.request_shutdown = lambda reason, status=0: asked.append(reason)  # type: ignore[method-assign]
    board.vm.request_reset = asked.append  # type: ignore[method-assign, assignment]
    ports = board.vm.ports
    ports.write(0xCF8, 4, 0x80000B40)
    ports.write(0xCFC, 4, 0x601)
    ports.write(0xCF8, 4, 0x80000B80)
    ports.write(0xCFC, 1, 1)
    ports.write(0x604, 2, 0x2000)
    ports.write(0xCF9, 1, 6)
    ports.write(0x92, 1, 1)
    assert asked == ["guest-shutdown", "guest-reset", "guest-reset"]


def test_power_button_reaches_irq_9(make: Make) -> None:
    board = make()
    ports = board.vm.ports
    ports.write(0xCF8, 4, 0x80000B40)
    ports.write(0xCFC, 4, 0x601)
    ports.write(0xCF8, 4, 0x80000B80)
    ports.write(0xCFC, 1, 1)
    ports.write(0x602, 2, 0x100)
    ports.write(0xB2, 1, 0xF1)
    board.vm.powerdown()
    ports.write(0xA0, 1, 0x0A)
    assert ports.read(0xA0, 1) & 2, "IRQ 9 is pending in the slave"


def test_every_device_saves_and_loads(make: Make) -> None:
    board, other = make(), make()
    for name, device in board.vm.devices.items():
        saved = device.save()
        other.vm.devices[name].load(saved)
        assert other.vm.devices[name].save() == saved, name


def drives(*texts: str) -> tuple[DriveConfig, ...]:
    taken: list[DriveConfig] = []
    for text in texts:
        taken.append(parse_drive(text, taken))
    return tuple(taken)


def test_ide_drives_at_their_places(make: Make) -> None:
    board = make(
        drives=drives("file=null-co://,size=1G,index=0", "file=null-co://,size=1G,if=none,id=x", "media=cdrom,index=2"),
        devices=({"driver": "ide-hd", "drive": "x", "serial": "ABC", "bus": "ide.0"},),
    )
    assert [name for name in board.vm.devices if name.startswith("ide.")] == [
        "ide.0", "ide.1", "ide.0.0", "ide.1.0", "ide.0.1",
    ]  # fmt: skip
    assert cmos(board, 0x12) == 0xFF and cmos(board, 0x1B) | cmos(board, 0x1C) << 8 == 2080
    ports = board.vm.ports
    ports.write(0x1F6, 1, 0xB0)
    ports.write(0x1F7, 1, 0xEC)
    words = ports.read_string(0x1F0, 2, 256)
    assert words[20:40].replace(b" ", b"") == b"BA" + b"C" and ports.read(0x1F7, 1) == 0x50
    ports.write(0x176, 1, 0xA0)
    assert ports.read(0x175, 1) == 0xEB


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ({"driver": "ide-hd"}, "No drive specified"),
        ({"driver": "ide-hd", "drive": "nope"}, "Can't find value 'nope'"),
        ({"driver": "ide-hd", "drive": "x", "bus": "ide.0", "unit": "0"}, "unit 0 is in use"),
        ({"driver": "ide-hd", "drive": "x", "bus": "ide.7"}, "there is no place ide.7"),
        ({"driver": "ide-hd", "drive": "x", "colour": "red"}, "Property 'ide-hd.colour' not found"),
        ({"driver": "i440FX"}, "has this device already"),
        ({"driver": "nonsense"}, "not a valid device model"),
        ({"driver": "isa-debugcon"}, "empty char device"),
    ],
)
def test_devices_that_cannot_be(make: Make, device: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(drives=drives("file=null-co://,index=0", "file=null-co://,if=none,id=x"), devices=(device,))


def test_floppy_type_in_cmos(make: Make) -> None:
    assert cmos(make(drives=drives("if=floppy")), 0x10) == 0x50
    board = make(drives=drives("if=floppy,file=null-co://,size=1474560"))
    assert cmos(board, 0x10) == 0x40 and cmos(board, 0x14) & 0xC1 == 0x01
    assert b"FDC0" in board.acpi.block and b"FDC0" not in make().acpi.block


def test_no_display_without_defaults(make: Make) -> None:
    assert make().vm.screen is not None and make(nodefaults=True).vm.screen is None
    assert make(nodefaults=True, vga="std").vm.screen is not None and make(vga="none").vm.screen is None


def test_bad_firmware(make: Make, tmp_path: object) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        make(bios="/nonexistent/bios.bin")
    with open(f"{tmp_path}/odd.bin", "wb") as file:
        file.write(b"x" * 1000)
    with pytest.raises(ConfigError, match="no multiple of 64 KiB"):
        make(bios=f"{tmp_path}/odd.bin")


def test_serial_ports_by_device_option(make: Make) -> None:
    board = make(nodefaults=True)
    for text in ("ringbuf,id=one", "ringbuf,id=two", "ringbuf,id=three"):
        board.vm.chardevs.add(text)
    for given in (
        {"driver": "isa-serial", "chardev": "one", "index": "1"},
        {"driver": "isa-serial", "chardev": "two"},
        {"driver": "isa-parallel", "chardev": "three", "iobase": "0x3e8"},
    ):
        pc_devices.add_device(board, given)
    ports = board.vm.ports
    for port in (0x3F8, 0x2F8):
        ports.write(port + 7, 1, 0x5A)
        assert ports.read(port + 7, 1) == 0x5A
    ports.write(0x2F9, 1, 2)
    assert board.irqs.pic.chips[0].last & 1 << 3, "the transmitter interrupt of COM2 is IRQ 3"
    assert ports.read(0x3E8 + 1, 1) == 0xD8
    for given, message in (
        ({"driver": "isa-serial"}, "empty char device"),
        ({"driver": "isa-serial", "chardev": "one", "index": "1"}, "there already"),
        ({"driver": "isa-serial", "chardev": "one", "index": "4"}, "Max. supported"),
        ({"driver": "isa-serial", "chardev": "nope"}, "not found"),
    ):
        with pytest.raises(ConfigError, match=message):
            pc_devices.add_device(board, given)
