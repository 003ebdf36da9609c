"""What a CD/DVD-ROM drive answers to packets other than reads (SPC-3, MMC-5).

Each command is a function of the drive and the packet. It returns the data for the host (already cut to the allocation
length), None for success without data, or (sense key, additional sense code).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from qemupy.records import record

if TYPE_CHECKING:
    from qemupy.hw.block.atapi import AtapiDrive

NOT_READY, MEDIUM_ERROR, ILLEGAL_REQUEST, UNIT_ATTENTION = 0x02, 0x03, 0x05, 0x06
READ_ERROR, INVALID_OPCODE, LBA_OUT_OF_RANGE, INVALID_FIELD = 0x11, 0x20, 0x21, 0x24
MEDIUM_CHANGED, SAVING_UNSUPPORTED, MEDIUM_NOT_PRESENT, REMOVAL_PREVENTED = 0x28, 0x39, 0x3A, 0x53

TEST_UNIT_READY, REQUEST_SENSE, INQUIRY, START_STOP, PREVENT_ALLOW = 0x00, 0x03, 0x12, 0x1B, 0x1E
READ_CAPACITY, READ_10, SEEK, READ_SUBCHANNEL, READ_TOC = 0x25, 0x28, 0x2B, 0x42, 0x43
GET_CONFIGURATION, GET_EVENT_STATUS, READ_DISC_INFORMATION = 0x46, 0x4A, 0x51
MODE_SENSE_10, READ_12, SET_SPEED, MECHANISM_STATUS, READ_CD = 0x5A, 0xA8, 0xBB, 0xBD, 0xBE

# Not held up by a change of medium (SPC-3 5.6, MMC-5 4.1.6.1)
ALWAYS = {REQUEST_SENSE, INQUIRY, GET_CONFIGURATION, GET_EVENT_STATUS}

CD_SECTORS = 80 * 60 * 75  # more than that must be a DVD
PROFILE_CD, PROFILE_DVD = 0x08, 0x10

Answer = bytes | tuple[int, int] | None


@record(frozen=True)
class Command:
    run: Callable[[AtapiDrive, bytes], Answer]
    needs_medium: bool = False


def _word(packet: bytes, at: int) -> int:
    return packet[at] << 8 | packet[at + 1]


def msf(lba: int) -> bytes:
    """Minute, second, frame; the first two seconds precede sector 0."""
    seconds, frame = divmod(lba + 150, 75)
    return bytes((seconds // 60 & 0xFF, seconds % 60, frame))


def raw_sectors(data: bytes | bytearray, lba: int) -> bytearray:
    """Mode 1 sectors of 2352 bytes: sync, header, user data; error correction is left zero."""
    out = bytearray()
    for n in range(len(data) // 2048):
        position = bytes(value // 10 << 4 | value % 10 for value in msf(lba + n))
        out += b"\0" + b"\xff" * 10 + b"\0" + position + b"\x01" + data[n * 2048 : n * 2048 + 2048] + bytes(288)
    return out


def test_unit_ready(drive: AtapiDrive, packet: bytes) -> Answer:
    return None


def request_sense(drive: AtapiDrive, packet: bytes) -> Answer:
    data = bytearray(18)
    data[0], data[2], data[7], data[12] = 0x70, drive.sense_key, 10, drive.asc
    return bytes(data[: packet[4]])


def inquiry(drive: AtapiDrive, packet: bytes) -> Answer:
    if packet[1] & 1:
        return _vital_product_data(drive, packet)
    data = struct.pack(">5B3x8s16s4s", 0x05, 0x80, 0x00, 0x21, 31, b"QEMU    ", b"QEMU DVD-ROM    ",
                       drive.ver.encode("ascii", "replace").ljust(4)[:4])  # fmt: skip
    return data[: packet[4]]


def _vital_product_data(drive: AtapiDrive, packet: bytes) -> Answer:
    if packet[2] == 0x00:
        page = b"\x00\x83"
    elif packet[2] == 0x83:
        serial = (drive.serial or f"QM{drive.unit + 1:05}").encode("ascii", "replace")
        page = struct.pack(">4B", 2, 0, 0, len(serial)) + serial
    else:
        return ILLEGAL_REQUEST, INVALID_FIELD
    return (struct.pack(">BBH", 0x05, packet[2], len(page)) + page)[: packet[4]]


def start_stop(drive: AtapiDrive, packet: bytes) -> Answer:
    if packet[4] & 2 and not packet[4] >> 4:
        load = packet[4] & 1
        if not load and not drive.tray_open and drive.locked:
            return (NOT_READY if drive.block.inserted else ILLEGAL_REQUEST), REMOVAL_PREVENTED
        drive.tray_open = not load
    return None


def prevent_allow(drive: AtapiDrive, packet: bytes) -> Answer:
    drive.locked = bool(packet[4] & 1)
    return None


def read_capacity(drive: AtapiDrive, packet: bytes) -> Answer:
    return struct.pack(">II", drive.sectors - 1, 2048)


def read_toc(drive: AtapiDrive, packet: bytes) -> Answer:
    """One data track; formats 0 (TOC), 1 (sessions) and 2 (raw TOC)."""
    use_msf, start, kind = bool(packet[1] & 2), packet[6], packet[9] >> 6 or packet[2] & 0xF

    def address(lba: int) -> bytes:
        return b"\0" + msf(lba) if use_msf else struct.pack(">I", lba)

    if kind == 0:
        if start > 1 and start != 0xAA:
            return ILLEGAL_REQUEST, INVALID_FIELD
        body = b"\x01\x01" + (b"\0\x14\x01\0" + address(0) if start <= 1 else b"")
        body += b"\0\x16\xaa\0" + address(drive.sectors)
    elif kind == 1:
        body = b"\x01\x01" + b"\0\x14\x01\0" + address(0)
    elif kind == 2:
        body = b"\x01\x01"
        for point, where in ((0xA0, b"\0\x01\0\0"), (0xA1, b"\0\x01\0\0"), (0xA2, address(drive.sectors)),
                             (0x01, address(0))):  # fmt: skip
            body += bytes((1, 0x14, 0, point, 0, 0, 0)) + where
    else:
        return ILLEGAL_REQUEST, INVALID_FIELD
    return (struct.pack(">H", len(body)) + body)[: _word(packet, 7)]


def read_subchannel(drive: AtapiDrive, packet: bytes) -> Answer:
    return b"\0\x15\0\0"[: _word(packet, 7)]  # no audio


def get_configuration(drive: AtapiDrive, packet: bytes) -> Answer:
    if packet[1] & 3 == 3:
        return ILLEGAL_REQUEST, INVALID_FIELD
    profile = 0
    if drive.ready:
        profile = PROFILE_DVD if drive.sectors > CD_SECTORS else PROFILE_CD
    profiles = b"".join(struct.pack(">HBx", p, p == profile) for p in (PROFILE_DVD, PROFILE_CD))
    features = struct.pack(">HBB", 0, 0x03, len(profiles)) + profiles
    features += struct.pack(">HBBIB3x", 1, 0x03 | 2 << 2, 8, 2, 1)  # core: ATAPI
    features += struct.pack(">HBBB3x", 3, 0x03, 4, 0x29)  # removable: tray, ejects, locks
    return (struct.pack(">IHH", len(features) + 4, 0, profile) + features)[: _word(packet, 7)]


def get_event_status(drive: AtapiDrive, packet: bytes) -> Answer:
    if not packet[1] & 1:
        return ILLEGAL_REQUEST, INVALID_FIELD  # only polled
    if packet[4] & 0x10:
        code = 2 if drive.changed else 0
        status = (2 if drive.ready else 0) | (1 if drive.tray_open else 0)
        data = struct.pack(">HBBBBBB", 6, 4, 0x10, code, status, 0, 0)
    else:
        data = struct.pack(">HBB", 2, 0x80, 0x10)  # no such event class
    return data[: _word(packet, 7)]


def read_disc_information(drive: AtapiDrive, packet: bytes) -> Answer:
    if packet[1] & 7:
        return ILLEGAL_REQUEST, INVALID_FIELD
    data = bytearray(34)
    data[1], data[2], data[3], data[4], data[5], data[6], data[7] = 32, 0x0E, 1, 1, 1, 1, 0x20
    return bytes(data[: _word(packet, 7)])


def _mode_page(drive: AtapiDrive, code: int) -> bytes | None:
    if code == 0x01:  # error recovery
        return b"\x01\x06\0\x05\0\0\0\0"
    if code == 0x0E:  # audio control
        return b"\x0e\x0e\x04" + bytes(13)
    if code == 0x2A:  # capabilities: reads CD-R(W) and DVD, mode 2, tray loader, locks
        flags = 0x08 | 0x20 | 0x01 | (0x02 if drive.locked else 0)
        return struct.pack(">BBBBBBBBHHHHxxxx", 0x2A, 0x12, 0x3B, 0, 0x70, 0, flags, 0, 706, 2, 512, 706)
    return None


def mode_sense(drive: AtapiDrive, packet: bytes) -> Answer:
    control, code = packet[2] >> 6, packet[2] & 0x3F
    if control == 3:
        return ILLEGAL_REQUEST, SAVING_UNSUPPORTED
    pages = [_mode_page(drive, c) for c in ((0x01, 0x0E, 0x2A) if code == 0x3F else (code,))]
    if control == 1 or None in pages:
        return ILLEGAL_REQUEST, INVALID_FIELD
    body = b"".join(page for page in pages if page)
    medium = 0x70 if not drive.block.inserted else 0x71 if drive.tray_open else 0x01
    return (struct.pack(">HB5x", len(body) + 6, medium) + body)[: _word(packet, 7)]


def mechanism_status(drive: AtapiDrive, packet: bytes) -> Answer:
    return b"\0\0\0\0\0\x01\0\0"[: _word(packet, 8)]


COMMANDS: dict[int, Command] = {
    TEST_UNIT_READY: Command(test_unit_ready, needs_medium=True),
    REQUEST_SENSE: Command(request_sense),
    INQUIRY: Command(inquiry),
    START_STOP: Command(start_stop),
    PREVENT_ALLOW: Command(prevent_allow),
    READ_CAPACITY: Command(read_capacity, needs_medium=True),
    SEEK: Command(test_unit_ready, needs_medium=True),
    READ_SUBCHANNEL: Command(read_subchannel, needs_medium=True),
    READ_TOC: Command(read_toc, needs_medium=True),
    GET_CONFIGURATION: Command(get_configuration),
    GET_EVENT_STATUS: Command(get_event_status),
    READ_DISC_INFORMATION: Command(read_disc_information, needs_medium=True),
    MODE_SENSE_10: Command(mode_sense),
    SET_SPEED: Command(test_unit_ready, needs_medium=True),
    MECHANISM_STATUS: Command(mechanism_status),
}
