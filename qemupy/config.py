"""The machine asked for, typed and frozen. `cli.py` fills it from options; boards and `Vm` read it."""

from __future__ import annotations

import re

from qemupy import options
from qemupy.accel_options import AccelConfig, Icount
from qemupy.errors import ConfigError
from qemupy.records import field, record

# Options of the drive itself; all others belong to its image's nodes, which know whether they have them.
DRIVE_KEYS = (
    "aio", "bus", "cache", "cache.writeback", "driver", "file", "format", "id", "if", "index", "media", "readonly",
    "rerror", "serial", "snapshot", "unit", "werror",
)  # fmt: skip
NODE_KEYS = (
    "auto-read-only", "backing", "cache.direct", "cache.no-flush", "detect-zeroes", "discard", "file.aio",
    "file.driver", "file.filename", "file.locking", "node-name", "offset", "read-only", "size",
)  # fmt: skip
_THROTTLE = re.compile(r"throttling\.|throttling-|(bps|iops)(_|$)")
WERROR = ("enospc", "report", "ignore", "stop")
RERROR = ("report", "ignore", "stop")
_PER_BUS = {"ide": 2, "floppy": 1 << 30, "scsi": 7, "virtio": 1 << 30, "none": 1 << 30}
_LIMIT = {"ide": 4, "floppy": 2}
CACHES = ("none", "off", "writeback", "unsafe", "writethrough", "directsync")


@record(frozen=True)
class DriveConfig:
    id: str
    interface: str = "ide"
    index: int = 0
    media: str = "disk"
    file: str | None = None
    format: str | None = None
    readonly: bool = False
    snapshot: bool = False
    cache: str = "writeback"
    werror: str = "enospc"
    rerror: str = "report"
    options: dict[str, str] = field(factory=dict)  # of its nodes: `node-name`, `file.locking`...
    serial: str = ""
    option: str = ""  # the option it came from, for messages

    @property
    def removable(self) -> bool:
        return self.media == "cdrom" or self.interface == "floppy"


@record(frozen=True)
class Config:
    machine: str = "pc"
    machine_options: dict[str, str] = field(factory=dict)
    accel: AccelConfig = field(factory=AccelConfig)
    icount: Icount | None = None
    seed: int | None = None
    perfmap: bool = False
    cpu: str = "max"
    smp: int = 1
    ram: int = 128 << 20
    drives: tuple[DriveConfig, ...] = ()
    blockdevs: tuple[dict[str, str], ...] = ()
    devices: tuple[dict[str, str], ...] = ()
    chardevs: tuple[str, ...] = ()
    serials: tuple[str, ...] = ()
    monitors: tuple[tuple[str, str], ...] = ()  # (chardev id, mode)
    kernel: str | None = None
    initrd: str | None = None
    append: str = ""
    bios: str | None = None
    data_dirs: tuple[str, ...] = ()
    boot: dict[str, str] = field(factory=dict)
    nographic: bool = False
    display: str = "none"
    vga: str = ""  # "": std, or none with -nodefaults
    nodefaults: bool = False
    name: str = ""
    uuid: str | None = None
    rtc: dict[str, str] = field(factory=dict)
    reboot: bool = True
    shutdown: bool = True
    paused: bool = False
    pidfile: str | None = None
    incoming: str | None = None
    loadvm: str | None = None
    log_mask: int = 0
    log_file: str | None = None
    log_ranges: tuple[tuple[int, int], ...] = ()  # first and last address that -dfilter lets through
    globals: tuple[str, ...] = ()
    smbios: tuple[str, ...] = ()
    fw_cfg: tuple[str, ...] = ()


def parse_drive(text: str, taken: list[DriveConfig]) -> DriveConfig:
    """One `-drive`; `taken` are the drives before it, which decide a free index."""
    given = options.parse(text, "", ("readonly", "snapshot"))
    media = _choice(given, "media", ("disk", "cdrom"), "'{}' invalid media")
    interface = given.get("if", "ide")
    if interface not in _PER_BUS:
        raise ConfigError(f"unsupported bus type '{interface}'{options.did_you_mean(interface, _PER_BUS)}")
    if "format" in given and "driver" in given:
        raise ConfigError("Cannot specify both 'driver' and 'format'")
    image_format = given.get("format", given.get("driver"))
    node_options = _node_options(given)
    file = given.get("file") or None
    may_be_empty = media == "cdrom" or interface == "floppy"
    if file is None and not node_options and image_format in (None, "raw") and not may_be_empty:
        raise ConfigError('A block device must be specified for "file"')
    index = _drive_index(given, interface, taken)
    name = given.get("id") or _drive_name(interface, index, media)
    if any(d.id == name for d in taken):
        raise ConfigError(f"Duplicate ID '{name}' for drive")
    return DriveConfig(
        id=name,
        interface=interface,
        index=index,
        media=media,
        file=file,
        format=image_format,
        readonly=media == "cdrom" or _flag(given, "readonly") or _flag(given, "read-only"),
        snapshot=_flag(given, "snapshot"),
        cache=_cache(given),
        werror=_choice(given, "werror", WERROR, "'{}' invalid write error action"),
        rerror=_choice(given, "rerror", RERROR, "'{}' invalid read error action"),
        options=node_options,
        serial=given.get("serial", ""),
    )


def _node_options(given: dict[str, str]) -> dict[str, str]:
    """What is not the drive's own."""
    for key in given:
        if _THROTTLE.match(key):
            raise ConfigError(f"I/O throttling is not supported ('{key}')")
    if given.pop("copy-on-read", "off") not in ("off", "no", "false"):
        raise ConfigError("copy-on-read is not supported")
    found = {key: value for key, value in given.items() if key not in (*DRIVE_KEYS, "read-only")}
    if "aio" in given:
        found["file.aio"] = given["aio"]
    return found


def _choice(given: dict[str, str], key: str, known: tuple[str, ...], message: str) -> str:
    value = given.get(key, known[0])
    if value not in known:
        raise ConfigError(message.format(value) + options.did_you_mean(value, known))
    return value


def _cache(given: dict[str, str]) -> str:
    """`cache=`; `cache.writeback` says alone whether writes are acknowledged before they are stable."""
    cache = given.get("cache", "writeback")
    if cache not in CACHES:
        raise ConfigError(f"invalid cache option '{cache}'{options.did_you_mean(cache, CACHES)}")
    if "cache.writeback" in given:
        writeback = options.boolean("cache.writeback", given["cache.writeback"])
        pairs = {"writeback": "writethrough", "none": "directsync", "off": "directsync"}
        cache = {v: k for k, v in pairs.items()}.get(cache, cache) if writeback else pairs.get(cache, cache)
    return cache


def _flag(given: dict[str, str], key: str) -> bool:
    return key in given and options.boolean(key, given[key])


def _drive_index(given: dict[str, str], interface: str, taken: list[DriveConfig]) -> int:
    used = {d.index for d in taken if d.interface == interface}
    if "bus" in given or "unit" in given:
        if "index" in given:
            raise ConfigError("index cannot be used with bus and unit")
        per_bus = _PER_BUS[interface]
        bus, unit = (options.number(key, given.get(key, "0"), high=63) for key in ("bus", "unit"))
        if unit >= per_bus:
            raise ConfigError(f"unit {unit} too big (max is {per_bus - 1})")
        index = bus * per_bus + unit
    elif "index" in given:
        index = options.number("index", given["index"], high=63)
    else:
        index = next(i for i in range(1 << 30) if i not in used)
    if interface != "none" and index in used:
        bus, unit = divmod(index, _PER_BUS[interface])
        raise ConfigError(f"drive with bus={bus}, unit={unit} (index={index}) exists")
    if index >= _LIMIT.get(interface, 1 << 30):
        raise ConfigError(f"{interface} has no drive with index={index} (at most {_LIMIT[interface] - 1})")
    return index


def _drive_name(interface: str, index: int, media: str) -> str:
    """QEMU's names: ide0-hd0, ide1-cd0, floppy0, virtio0."""
    if interface in ("ide", "scsi"):
        bus, unit = divmod(index, _PER_BUS[interface])
        return f"{interface}{bus}-{'cd' if media == 'cdrom' else 'hd'}{unit}"
    return f"{interface}{index}"
