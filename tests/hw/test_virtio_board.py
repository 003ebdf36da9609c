"""Virtio devices of the command line on the pc board: places, names, what cannot be; a machine of the real core."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from qemupy.command_line import parse
from qemupy.errors import QemupyError
from qemupy.hw.i386 import devices, pc
from qemupy.hw.i386.boot_order import BootOrder
from qemupy.monitor.trees import pci_lines, qtree_lines
from qemupy.vcpu.interp import InterpAccel
from qemupy.vm import Vm

Make = Callable[[str], pc.Pc]
DISK = "if=none,id=d,driver=null-co,size=1M"


@pytest.fixture
def make() -> Iterator[Make]:
    machines: list[Vm] = []

    def build(words: str) -> pc.Pc:
        devices.load()
        config, _warnings = parse(["-m", "16", "-display", "none", "-serial", "none", "-vga", "none", *words.split()])
        vm = Vm(config, InterpAccel(config.ram + (64 << 20)))
        machines.append(vm)
        for drive in config.drives:
            vm.add_drive(drive)
        with vm.bql:
            return pc.Pc(vm)

    yield build
    for vm in machines:
        vm.close()


def test_disks_and_their_names(make: Make) -> None:
    board = make(f"-drive if=virtio,driver=null-co,size=1M -drive {DISK} -device virtio-blk,drive=d,id=disk0,addr=9")
    found = [(devfn >> 3, device.qdev_name) for devfn, device in board.bus if "virtio" in device.qdev_name]
    assert found == [(2, "virtio-blk-pci"), (9, "virtio-blk-pci")]
    attached = {name: drive.attached_to for name, drive in board.vm.drives.items()}
    assert attached["virtio0"] == "/machine/peripheral-anon/device[0]/virtio-backend"
    assert attached["d"] == "/machine/peripheral/disk0/virtio-backend"
    assert {"disk0", "disk0.virtio", "disk0.queue0"} <= set(board.vm.devices)


def test_what_monitors_show(make: Make) -> None:
    board = make(f"-drive {DISK} -device virtio-blk-pci,drive=d,id=disk0")
    tree = list(qtree_lines(board.vm))
    at = tree.index('      dev: virtio-blk-pci, id "disk0"')
    assert "        class SCSI controller, addr 00:02.0, pci id 1af4:1001 (sub 1af4:0002)" in tree[at:]
    bus = tree.index("        bus: virtio-bus")
    assert tree[bus + 1 : bus + 3] == ["          type virtio-pci-bus", '          dev: virtio-blk-device, id ""']
    assert "      BAR4: 64 bit prefetchable memory at 0xffffffffffffffff [0x00003ffe]." in list(pci_lines(board.vm))


def test_every_part_saves_and_loads(make: Make) -> None:
    words = f"-drive {DISK} -device virtio-blk-pci,drive=d,num-queues=3 -device virtio-rng-pci"
    board, other = make(words), make(words)
    names = [name for name in board.vm.devices if "virtio" in name]
    assert len(names) == 5 + 3
    for name in names:
        state = board.vm.devices[name].save()
        other.vm.devices[name].load(state)
        assert other.vm.devices[name].save() == state


def test_boot_order(make: Make) -> None:
    board = make(f"-drive {DISK} -device virtio-blk-pci,drive=d,bootindex=7,addr=5 "
                 "-drive if=none,id=e,driver=null-co,size=1M -device ide-hd,drive=e,bus=ide.1,unit=1,bootindex=2")
    assert board.fw_cfg.files["bootorder"].content == b"/pci@i0cf8/ide@1,1/drive@1/disk@1\n/pci@i0cf8/scsi@5/disk@0,0\0"
    assert BootOrder().content() == b"" and BootOrder().content("/rom@x") == b"/rom@x\0"


@pytest.mark.parametrize(("words", "message"), [
    ("-device virtio-blk-pci", "drive property not set"),
    ("-device virtio-blk-pci,drive=zz", "'virtio-blk-device.drive' can't find value 'zz'"),
    (f"-drive {DISK} -device virtio-blk-pci,drive=d,colour=red", "'virtio-blk-device.colour' not found"),
    (f"-drive {DISK} -device virtio-blk-pci,drive=d,num-queues=0", "num-queues property must be larger than 0"),
    (f"-drive {DISK} -device virtio-blk-pci,drive=d,vectors=9999", "unable to init msix vectors to 9999"),
    (f"-drive {DISK} -device virtio-blk-pci,drive=d,werror=maybe", "Invalid parameter 'maybe' for werror"),
    (f"-drive {DISK} -device virtio-blk-pci,drive=d,addr=1.0", "slot 1 function 0 not available"),
    (f"-drive {DISK} -device virtio-blk-pci,drive=d -device virtio-blk-pci,drive=d", "already in use"),
    ("-device virtio-rng-pci,id=r -device virtio-rng-pci,id=r", "Duplicate device ID 'r'"),
    ("-device virtio-rng-pci,rng=none", "Device 'none' not found"),
    (f"-drive {DISK} -drive if=none,id=e,driver=null-co,size=1M -device virtio-blk-pci,drive=d,bootindex=1 "
     "-device virtio-blk-pci,drive=e,bootindex=1", "The bootindex 1 has already been used"),
])  # fmt: skip
def test_what_cannot_be(make: Make, words: str, message: str) -> None:
    with pytest.raises(QemupyError, match=message):
        make(words)


def test_policies_of_the_device_win(make: Make) -> None:
    board = make(f"-drive {DISK},werror=report,cache=writethrough "
                 "-device virtio-blk-pci,drive=d,werror=stop,rerror=ignore,share-rw=on,serial=abc")
    policy = board.vm.drives["d"].policy
    assert (policy.werror, policy.rerror, policy.writethrough) == ("stop", "ignore", True)
    device = next(d for n, d in board.vm.devices.items() if n.endswith(".virtio"))
    assert (device.serial, device.write_cache) == ("abc", False)  # type: ignore[attr-defined]
