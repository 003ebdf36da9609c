"""What fw_cfg says about a PC (keys and files as QEMU's pc-i440fx-7.2 has them)."""

from __future__ import annotations

import struct

from qemupy import options
from qemupy.errors import BackendError, ConfigError
from qemupy.hw.acpi import smbios, tables
from qemupy.hw.acpi.tables import AcpiTables
from qemupy.hw.i386.pc_memory import GIB4, RamSplit
from qemupy.hw.misc import fw_cfg as keys
from qemupy.hw.misc.fw_cfg import FwCfg
from qemupy.vm import Vm

E820_RAM, E820_RESERVED = 1, 2


def e820(split: RamSplit) -> bytes:
    """The map of RAM, as SeaBIOS takes it from `etc/e820`."""
    table = struct.pack("<QQI", 0, split.below_4g, E820_RAM)
    if split.above_4g:
        table += struct.pack("<QQI", GIB4, split.above_4g, E820_RAM)
    return table


def hpet_blocks(present: bool) -> bytes:
    """Count, then event timer block id, address, minimum tick and page protection of each, room for eight."""
    blocks = struct.pack("<IQHB", 0x8086A201, 0xFED00000, 100, 0) if present else b""
    return (bytes((len(blocks) // 15,)) + blocks).ljust(1 + 8 * 15, b"\0")


def machine_uuid(vm: Vm) -> bytes:
    if vm.config.uuid is None:
        return bytes(16)
    import uuid  # with what it imports it takes some milliseconds

    return uuid.UUID(vm.config.uuid).bytes


def add_items(vm: Vm, cfg: FwCfg, split: RamSplit, has_hpet: bool) -> None:
    config = vm.config
    cfg.add_bytes(keys.UUID, machine_uuid(vm))
    cfg.add_u64(keys.RAM_SIZE, config.ram)
    cfg.add_u16(keys.NOGRAPHIC, int(config.nographic))
    cfg.add_u16(keys.NB_CPUS, config.smp)
    cfg.add_u16(keys.MAX_CPUS, config.smp)
    cfg.add_bytes(keys.NUMA, bytes(8 * (1 + config.smp)))
    cfg.add_u32(keys.IRQ0_OVERRIDE, 1)
    cfg.add_bytes(keys.HPET, hpet_blocks(has_hpet))
    cfg.add_file("etc/e820", e820(split))
    cfg.add_file("etc/system-states", bytes((128, 0, 0, 129, 130, 128)))  # S3 and S4 off, SLP_TYP 1, 2 and 0
    if split.above_4g:
        cfg.add_file("etc/reserved-memory-end", struct.pack("<Q", GIB4 + split.above_4g))
    _add_boot_options(vm, cfg)
    for text in config.fw_cfg:
        _add_user_file(cfg, text)


def add_tables(cfg: FwCfg, acpi: AcpiTables, identity: smbios.Identity) -> None:
    """ACPI and SMBIOS tables for the firmware to place."""
    cfg.add_file(tables.TABLES_FILE, bytes(acpi.block))
    cfg.add_file(tables.RSDP_FILE, acpi.rsdp)
    cfg.add_file(tables.LOADER_FILE, acpi.loader_script())
    anchor, structures = smbios.build(identity)
    cfg.add_file(smbios.ANCHOR_FILE, anchor)
    cfg.add_file(smbios.TABLES_FILE, structures)


def _add_boot_options(vm: Vm, cfg: FwCfg) -> None:
    boot = vm.config.boot
    menu = "menu" in boot and options.boolean("menu", boot["menu"])
    cfg.add_u16(keys.BOOT_MENU, int(menu))
    if "splash-time" in boot:
        cfg.add_file("etc/boot-menu-wait", struct.pack("<H", options.number("splash-time", boot["splash-time"])))
    wait = -1  # for ever
    if "reboot-timeout" in boot:
        wait = options.number("reboot-timeout", boot["reboot-timeout"], high=0xFFFF)
    cfg.add_file("etc/boot-fail-wait", struct.pack("<i", wait))


def _add_user_file(cfg: FwCfg, text: str) -> None:
    """`-fw_cfg name=NAME,file=PATH` or `string=TEXT`."""
    given = options.parse(text, "name")
    name = given.get("name")
    if not name or ("file" in given) == ("string" in given):
        raise ConfigError("-fw_cfg: name and one of file and string are needed")
    if "string" in given:
        cfg.add_file(name, given["string"].encode())
        return
    try:
        with open(given["file"], "rb") as file:
            cfg.add_file(name, file.read())
    except OSError as e:
        raise BackendError(f"-fw_cfg: can't load {given['file']}: {e.strerror}") from None
