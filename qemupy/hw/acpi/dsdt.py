"""The DSDT of an i440FX PC: what lies behind the PCI host bridge and cannot be discovered otherwise.

Interrupt pins reach the interrupt controllers through the link devices LNKA-LNKD, which are the PIIX3's registers
60h-63h; the power management function has its own link, fixed to IRQ 9. Without SMM there is no S3; S4 and S5 both
power off.
"""

from __future__ import annotations

from qemupy.hw.acpi.aml import (
    BYTE_ACCESS,
    PCI_CONFIG,
    and_,
    arg,
    call,
    create_dword_field,
    device,
    dma,
    dword_memory,
    eisa_id,
    field,
    fixed_memory,
    if_,
    integer,
    interrupts,
    io,
    irq,
    less,
    method,
    name,
    name_string,
    operation_region,
    or_,
    package,
    resources,
    ret,
    scope,
    store,
    string,
    word_space,
)
from qemupy.hw.acpi.piix4_pm import GPE_BASE, SMBUS_BASE
from qemupy.records import record

LINKS = ("LNKA", "LNKB", "LNKC", "LNKD")
LINK_IRQS = (5, 10, 11)
SCI_IRQ = 9
HPET_BASE = 0xFED00000
PCI_HOLE_END = 0xFEBFFFFF


@record(frozen=True)
class Hardware:
    """What the tables describe."""

    cpus: int
    below_4g: int
    serials: tuple[tuple[int, int], ...] = ((0x3F8, 4),)  # port, IRQ
    parallels: tuple[tuple[int, int], ...] = ()
    floppy: bool = False
    hpet: bool = True
    fw_cfg: bool = True


def build(hw: Hardware) -> bytes:
    """The AML, without the table header."""
    return b"".join(
        (
            scope("\\_SB", _host_bridge(hw), *(_processor(n) for n in range(hw.cpus))),
            scope("\\_SB.PCI0", _isa_bridge(hw), name("_PRT", _routing())),
            scope("\\_SB", *_links(), *([_hpet()] if hw.hpet else [])),
            scope("\\_GPE", name("_HID", string("ACPI0006"))),
            name("\\_S4", package(*(integer(n) for n in (2, 2, 0, 0)))),
            name("\\_S5", package(*(integer(n) for n in (0, 0, 0, 0)))),
        )
    )


def _processor(n: int) -> bytes:
    return device(f"C{n:03X}", name("_HID", string("ACPI0007")), name("_UID", integer(n)))


def _host_bridge(hw: Hardware) -> bytes:
    windows = resources(
        word_space(2, 0, 0xFF),
        io(0xCF8, 8),
        word_space(1, 0, 0xCF7, 3),
        word_space(1, 0xD00, 0xFFFF, 3),
        dword_memory(0xA0000, 0xBFFFF, cacheable=True),
        dword_memory(hw.below_4g, PCI_HOLE_END, cacheable=False),
    )
    reserved = device(
        "RES0",
        name("_HID", eisa_id("PNP0A06")),
        name("_UID", string("PM and SMBus resources")),
        name("_STA", integer(0x0B)),
        name("_CRS", resources(io(GPE_BASE, 4), io(SMBUS_BASE, 0x40))),
    )
    return device(
        "PCI0",
        name("_HID", eisa_id("PNP0A03")),
        name("_ADR", integer(0)),
        name("_UID", integer(0)),
        name("_CRS", windows),
        reserved,
    )


def _routing() -> bytes:
    """For each slot and pin the link it leads to (see `piix3.pirq_of`)."""
    entries = []
    for slot in range(32):
        for pin in range(4):
            link = "LNKS" if (slot, pin) == (1, 0) else LINKS[(pin + slot - 1) & 3]
            entries.append(package(integer(slot << 16 | 0xFFFF), integer(pin), name_string(link), integer(0)))
    return package(*entries)


def _links() -> list[bytes]:
    registers = field("\\_SB.PCI0.ISA.P40C", BYTE_ACCESS, *((f"PRQ{n}", 8) for n in range(4)))
    status = method("IQST", 1, if_(and_(integer(0x80), arg(0)), ret(integer(0x09))), ret(integer(0x0B)))
    current = method(
        "IQCR",
        1,
        name("PRR0", resources(interrupts(0))),
        create_dword_field(name_string("PRR0"), 5, "PRRI"),
        if_(less(arg(0), integer(0x80)), store(arg(0), name_string("PRRI"))),
        ret(name_string("PRR0")),
        serialized=True,
    )
    return [registers, status, current, *(_link(n) for n in range(4)), _sci_link()]


def _link(n: int) -> bytes:
    register = name_string(f"PRQ{n}")
    return device(
        LINKS[n],
        name("_HID", eisa_id("PNP0C0F")),
        name("_UID", integer(n)),
        name("_PRS", resources(interrupts(*LINK_IRQS))),
        method("_STA", 0, ret(call("IQST", register))),
        method("_DIS", 0, or_(register, integer(0x80), register)),
        method("_CRS", 0, ret(call("IQCR", register))),
        method("_SRS", 1, create_dword_field(arg(0), 5, "PRRI"), store(name_string("PRRI"), register)),
    )


def _sci_link() -> bytes:
    return device(
        "LNKS",
        name("_HID", eisa_id("PNP0C0F")),
        name("_UID", integer(4)),
        name("_PRS", resources(interrupts(SCI_IRQ))),
        method("_STA", 0, ret(integer(0x0B))),
        method("_DIS", 0),
        method("_CRS", 0, ret(name_string("_PRS"))),
        method("_SRS", 1),
    )


def _isa_bridge(hw: Hardware) -> bytes:
    children = [
        _isa("KBD", "PNP0303", io(0x60, 1), io(0x64, 1), irq(1)),
        _isa("MOU", "PNP0F13", irq(12)),
        _isa("RTC", "PNP0B00", io(0x70, 8), irq(8)),
    ]
    if hw.floppy:
        children.append(_isa("FDC0", "PNP0700", io(0x3F2, 4), io(0x3F7, 1), irq(6), dma(2)))
    for n, (port, line) in enumerate(hw.parallels, 1):
        children.append(_isa(f"LPT{n}", "PNP0400", io(port, 8, 8), irq(line), uid=n))
    for n, (port, line) in enumerate(hw.serials, 1):
        children.append(_isa(f"COM{n}", "PNP0501", io(port, 8), irq(line), uid=n))
    if hw.fw_cfg:
        children.append(
            device(
                "FWCF",
                name("_HID", string("QEMU0002")),
                name("_STA", integer(0x0B)),
                name("_CRS", resources(io(0x510, 12))),
            )
        )
    region = operation_region("P40C", PCI_CONFIG, 0x60, 4)
    return device("ISA", name("_ADR", integer(0x00010000)), region, *children)


def _isa(path: str, hid: str, *descriptors: bytes, uid: int | None = None) -> bytes:
    body = [name("_HID", eisa_id(hid))]
    if uid is not None:
        body.append(name("_UID", integer(uid)))
    return device(path, *body, name("_STA", integer(0x0F)), name("_CRS", resources(*descriptors)))


def _hpet() -> bytes:
    return device(
        "HPET",
        name("_HID", eisa_id("PNP0103")),
        name("_UID", integer(0)),
        name("_STA", integer(0x0F)),
        name("_CRS", resources(fixed_memory(HPET_BASE, 0x400))),
    )
