"""A disk on a virtio bus (virtio 1.2, 5.2): requests go from the ring to the block backend without a copy.

A request is a header, data and a status byte, cut into descriptors as the driver likes. Data lies in guest memory and
is handed to the backend as it lies there. Requests may complete in any order. While the write cache is off, a write is
answered after a flush.
"""

from __future__ import annotations

import struct
from typing import ClassVar

from qemupy.backends.block.base import BlockBackend, Completion
from qemupy.errors import ConfigError
from qemupy.hw.block.ata_disk import guess_geometry
from qemupy.hw.core import boolean, prop, register, transient
from qemupy.hw.virtio import VirtioDevice, VirtioPci, VirtQueue
from qemupy.memory.virtqueue import MAX_SIZE, Chain
from qemupy.scatter import Scatter, join

F_SEG_MAX, F_GEOMETRY, F_RO, F_BLK_SIZE, F_FLUSH = 1 << 2, 1 << 4, 1 << 5, 1 << 6, 1 << 9
F_TOPOLOGY, F_CONFIG_WCE, F_MQ, F_DISCARD, F_WRITE_ZEROES = 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14

IN, OUT, SCSI, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 2, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2

HEADER = struct.Struct("<IIQ")  # type, priority, sector
RANGE = struct.Struct("<QII")  # sector, sectors, flags of a discard or write-zeroes
UNMAP = 1
SECTOR = 512
ID_SIZE = 20
CONFIG = struct.Struct("<QIIHBBIBBHIBBHIIIIIB3x")
WCE_AT = 32
MAX_QUEUES = 1024
MAX_BLOCK = 2 << 20
MERGED = 1 << 20  # bytes of the largest run: what is more is for several workers
AT_ONCE = 1 << 20  # bytes read from the host's memory in one turn; the main loop serves nobody else meanwhile
GUEST_LIMIT = 0x3FFFFF  # sectors of one discard or write-zeroes


@register("virtio-blk-device", bus="virtio-bus")
class VirtioBlk(VirtioDevice):
    device_type = 2
    config_size = CONFIG.size

    block: BlockBackend
    serial: str = prop(default="", help="what GET_ID answers, up to 20 characters")
    num_queues: int = prop(default=1, help="request queues")
    queue_size: int = prop(default=256, help="entries of each queue, a power of two")
    logical_block_size: int = prop(default=512, help="bytes of the smallest request")
    physical_block_size: int = prop(default=512, help="bytes that the medium writes at once")
    min_io_size: int = prop(default=0, help="bytes of a good small request")
    opt_io_size: int = prop(default=0, help="bytes of the best request")
    discard: bool = prop(default=True, help="offer DISCARD")
    write_zeroes: bool = prop(default=True, help="offer WRITE ZEROES")
    config_wce: bool = prop(default=True, help="the guest may switch the write cache")
    write_cache: bool = prop(default=True, help="writes are answered before they are stable")
    seg_max_adjust: bool = prop(default=True, help="as many segments as fit into a queue")
    max_discard_sectors: int = prop(default=GUEST_LIMIT, help="sectors of one DISCARD")
    max_write_zeroes_sectors: int = prop(default=GUEST_LIMIT, help="sectors of one WRITE ZEROES")
    wce: bool = boolean(reset=True)  # the write cache is on
    _run: Run | None = transient(None)  # to be started when all that was taken together has been looked at
    _at_once: int = transient(0)  # bytes that may still be read in this turn of the main loop

    def queue_sizes(self) -> list[int]:
        return [self.queue_size] * self.num_queues

    def realize(self) -> None:
        if not 1 <= self.num_queues <= MAX_QUEUES:
            raise ConfigError(f"num-queues property must be larger than 0 and at most {MAX_QUEUES}, "
                              f"not {self.num_queues}")  # fmt: skip
        size = self.queue_size
        if not 2 < size <= MAX_SIZE or size & size - 1:
            raise ConfigError(f"invalid queue-size property ({size}), must be a power of 2 (max {MAX_SIZE})")
        for name in ("logical_block_size", "physical_block_size"):
            value = getattr(self, name)
            if not SECTOR <= value <= MAX_BLOCK or value & value - 1:
                raise ConfigError(f"Property .{name} doesn't take value {value}: a power of 2 from 512 to 2097152")
        if self.logical_block_size > self.physical_block_size:
            raise ConfigError("logical_block_size > physical_block_size not supported")
        super().realize()
        self.wce = self.write_cache
        self.block.on_media_change(self.config_changed)

    def reset(self) -> None:
        super().reset()
        self.wce = self.write_cache

    # Features and configuration

    def device_features(self) -> int:
        features = F_SEG_MAX | F_GEOMETRY | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY
        for wanted, bit in ((self.config_wce, F_CONFIG_WCE), (self.num_queues > 1, F_MQ), (self.discard, F_DISCARD),
                            (self.write_zeroes, F_WRITE_ZEROES), (self.block.readonly, F_RO)):  # fmt: skip
            features |= bit if wanted else 0
        return features

    def read_config(self) -> bytes:
        """5.2.4; fields of features that are not offered read as zeros, as in QEMU."""
        sectors = self.block.length // SECTOR
        cylinders, heads, per_track = guess_geometry(sectors)
        per_block = self.logical_block_size // SECTOR
        exponent = (self.physical_block_size // self.logical_block_size).bit_length() - 1
        discard = (self.max_discard_sectors, 1, per_block) if self.discard else (0, 0, 0)
        zeroes = (self.max_write_zeroes_sectors, 1, 1) if self.write_zeroes else (0, 0, 0)
        seg_max = self.queue_size - 2 if self.seg_max_adjust else 126
        return CONFIG.pack(
            sectors, 0, seg_max, cylinders, heads, per_track & -per_block & 0xFF, self.logical_block_size, exponent, 0,
            self.min_io_size // self.logical_block_size, self.opt_io_size // self.logical_block_size, self.wce, 0,
            self.num_queues, *discard, *zeroes,
        )  # fmt: skip

    def config_written(self, offset: int, data: bytes) -> None:
        if offset <= WCE_AT < offset + len(data) and self.features & F_CONFIG_WCE:
            self.wce = bool(data[WCE_AT - offset] & 1)

    def driver_ready(self) -> None:
        """A driver that cannot switch the cache has one only if it can flush it (5.2.5)."""
        if not self.features & F_CONFIG_WCE:
            self.wce = bool(self.features & F_FLUSH)

    # Requests

    def serve(self, queue: VirtQueue) -> None:
        self._at_once = AT_ONCE
        super().serve(queue)

    def handle(self, queue: VirtQueue, chain: Chain) -> None:
        readable, writable = chain.readable, chain.writable
        if not readable or not writable:
            self._malformed(queue, "virtio-blk missing headers")
            return
        if readable.size < HEADER.size:
            self._malformed(queue, "virtio-blk request outhdr too short")
            return
        first = readable[0]
        header = first[: HEADER.size] if len(first) >= HEADER.size else b"".join(readable.cut(0, HEADER.size))
        kind, _priority, sector = HEADER.unpack(header)
        request = Request(self, queue, chain)
        if kind in (IN, OUT):
            data = writable.cut(0, writable.size - 1) if kind == IN else readable.cut(HEADER.size, readable.size)
            if request.in_range(sector, data.size):
                self._transfer(kind, sector * SECTOR, request, data)
            return
        self.handled()
        if kind == FLUSH:
            self.block.flush(self.guarded(request.done))
        elif kind == GET_ID:
            self._get_id(request)
        elif kind in (DISCARD, WRITE_ZEROES):
            self._change_range(request, kind, b"".join(readable.cut(HEADER.size, RANGE.size + 1)))
        else:
            request.finish(UNSUPP)

    def _transfer(self, kind: int, offset: int, request: Request, data: Scatter) -> None:
        if self._run is None or not self._run.takes(kind, offset, data):
            self.handled()
            self._run = Run(self, kind, offset)
        self._run.add(request, data)

    def handled(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.start()

    def read_now(self, offset: int, data: Scatter, merged: int) -> bool:
        """Done, if it takes no waiting and not too much has been read in this turn."""
        if data.size > self._at_once or not self.block.read_now(offset, data, merged):
            return False
        self._at_once -= data.size
        return True

    def written(self, done: Completion) -> Completion:
        """The completion of a write: without a write cache what was written is flushed first."""

        def flush(error: int) -> None:
            if error:
                done(error)
            else:
                self.block.flush(self.guarded(done))

        return self.guarded(done if self.wce else flush)

    def _malformed(self, queue: VirtQueue, why: str) -> None:
        queue.in_flight -= 1
        self.fail(why)

    def _get_id(self, request: Request) -> None:
        data = self.serial.encode()[:ID_SIZE].ljust(ID_SIZE, b"\0")
        writable = request.chain.writable
        for view in writable.cut(0, writable.size - 1):
            view[: len(data)] = data[: len(view)]
            data = data[len(view) :]
        request.finish(OK)

    def _change_range(self, request: Request, kind: int, body: bytes) -> None:
        """One range; more than one is not offered (5.2.6.2)."""
        offered = self.discard if kind == DISCARD else self.write_zeroes
        limit = self.max_discard_sectors if kind == DISCARD else self.max_write_zeroes_sectors
        if not offered or len(body) != RANGE.size:
            request.finish(UNSUPP if not offered or len(body) > RANGE.size else IOERR)
            return
        sector, count, flags = RANGE.unpack(body)
        if flags & ~UNMAP or (kind == DISCARD and flags):
            request.finish(UNSUPP)
        elif count > limit:
            request.finish(IOERR)
        elif request.in_range(sector, count * SECTOR):
            done = self.written(request.done)
            if kind == DISCARD:
                self.block.discard(sector * SECTOR, count * SECTOR, done)
            else:
                self.block.write_zeroes(sector * SECTOR, count * SECTOR, bool(flags), done)


class Run:
    """Reads or writes that follow one another on the medium, for the backend one request: a guest whose memory lies in
    single pages cuts a megabyte into two."""

    def __init__(self, device: VirtioBlk, kind: int, offset: int) -> None:
        self.device, self.kind, self.offset, self.end = device, kind, offset, offset
        self.requests: list[Request] = []
        self.parts: list[Scatter] = []

    def takes(self, kind: int, offset: int, data: Scatter) -> bool:
        return kind == self.kind and offset == self.end and offset + data.size - self.offset <= MERGED

    def add(self, request: Request, data: Scatter) -> None:
        self.requests.append(request)
        self.parts.append(data)
        self.end += data.size

    def start(self) -> None:
        device, data, merged = self.device, join(self.parts), len(self.parts) - 1
        if self.kind == OUT:
            device.block.writev(self.offset, data, device.written(self.done), merged)
        elif device.read_now(self.offset, data, merged):
            self.done(0)
        else:
            device.block.readv(self.offset, data, device.guarded(self.done), merged)

    def done(self, error: int) -> None:
        """Which of several failed, they find out one by one."""
        if error and len(self.requests) > 1:
            at = self.offset
            for request, data in zip(self.requests, self.parts, strict=True):
                alone = Run(self.device, self.kind, at)
                alone.add(request, data)
                alone.start()
                at = alone.end
            return
        for request in self.requests:
            request.done(error)


class Request:
    """One request that the backend has."""

    __slots__ = ("chain", "device", "queue")

    def __init__(self, device: VirtioBlk, queue: VirtQueue, chain: Chain) -> None:
        self.device, self.queue, self.chain = device, queue, chain

    def in_range(self, sector: int, length: int) -> bool:
        """Whole blocks on the medium; else the request is answered."""
        device = self.device
        mask = device.logical_block_size - 1
        if (sector * SECTOR | length) & mask or sector * SECTOR + length > device.block.length:
            self.finish(IOERR)
            return False
        return True

    def done(self, error: int) -> None:
        self.finish(IOERR if error else OK)

    def finish(self, status: int) -> None:
        """The status is the last byte that the device may write."""
        writable = self.chain.writable
        writable[-1][-1] = status
        self.device.complete(self.queue, self.chain, writable.size)


@register("virtio-blk-pci", bus="PCI", aliases=("virtio-blk",))
class VirtioBlkPci(VirtioPci):
    class_code = 0x010000
    transitional_id = 0x1001
    device_id = 0x1001
    device_class: ClassVar[type[VirtioDevice]] = VirtioBlk


@register("virtio-blk-pci-transitional", bus="PCI")
class VirtioBlkPciTransitional(VirtioBlkPci):
    pass


@register("virtio-blk-pci-non-transitional", bus="PCI")
class VirtioBlkPciNonTransitional(VirtioBlkPci):
    allow_legacy = False
