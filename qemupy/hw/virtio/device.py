"""`VirtioDevice`: what all virtio devices share, whatever bus they are on (virtio 1.2, chapter 2).

    @register("virtio-nothing-device", bus="virtio-bus")
    class Nothing(VirtioDevice):
        device_type, queue_count = 42, 1

        def handle(self, queue: VirtQueue, chain: Chain) -> None:
            self.complete(queue, chain, 0)      # now, or later from the main loop

A notification is an eventfd that the guest's write adds to; the main loop then takes chains from the ring. The guest
runs on meanwhile. Nothing is taken while the machine stands, so that saving it finds guest memory at rest; chains that
are still in the device's hands then (a disk error stopped the machine) are saved by their heads and taken again.

What the guest may get wrong in its rings ends in `fail`: the device is broken until the guest resets it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from qemupy.errors import PageInError
from qemupy.hw.core import (
    Device,
    State,
    boolean,
    fifo,
    log_guest_error,
    prop,
    transient,
    u8,
    u16,
    u64,
)  # fmt: skip
from qemupy.hw.virtio import regs
from qemupy.memory.virtqueue import EVENT_IDX, MAX_SIZE, NOTIFY_ON_EMPTY, Chain, Virtqueue, VirtqueueError

BATCH = 16  # chains taken at once, and the most that are handled in one turn of the main loop


class VirtioHost(Protocol):
    """What the machine does for a virtio device."""

    @property
    def running(self) -> bool:
        """Guest memory may change: the machine does not stand."""

    def virtqueue(self) -> Virtqueue: ...

    def notifier(self, call: Callable[[], None]) -> int:
        """An eventfd; `call` is called from the main loop after it was written to."""

    def ring(self, notifier: int) -> None:
        """As if it had been written to."""

    def post(self, call: Callable[[], None]) -> None:
        """Call it from the main loop soon."""

    def on_resume(self, call: Callable[[], None]) -> None:
        """`call` whenever the machine begins to run."""

    def later(self, call: Callable[[], None]) -> None:
        """See `Dma.later`."""


class Transport(Protocol):
    """The bus's side, as the device sees it."""

    def queue_interrupt(self, vector: int) -> None: ...

    def config_interrupt(self) -> None: ...

    def queues_changed(self) -> None:
        """Queues were enabled or disabled, or the driver is ready: doorbells may have to move."""


class VirtQueue(State):
    ring: Virtqueue
    number: int = prop(default=0)
    max_size: int = prop(default=256)
    size: int = u16()
    enabled: bool = boolean()
    desc: int = u64()
    avail: int = u64()
    used: int = u64()
    vector: int = u16(reset=regs.NO_VECTOR)
    last_avail: int = u16()  # as of the last save; while the device runs the ring has it, and `used_idx`
    used_idx: int = u16()
    taken: bytearray = fifo(2 * MAX_SIZE)  # 16-bit heads of chains in the device's hands, as of the last save
    resetting: bool = boolean()
    in_flight: int = transient(0)
    notifier: int = transient(-1)  # eventfd
    scheduled: bool = transient(False)

    def realize(self) -> None:
        self.size = self.max_size

    def reset(self) -> None:
        super().reset()
        self.size = self.max_size
        self.in_flight = 0

    def save(self) -> dict[str, Any]:
        if self.enabled:
            self.last_avail, self.used_idx = self.ring.indices()
            heads = self.ring.taken()
            self.taken[:] = struct.pack(f"<{len(heads)}H", *heads)
        return super().save()

    def taken_heads(self) -> list[int]:
        return [head for (head,) in struct.iter_unpack("<H", self.taken[: len(self.taken) & ~1])]


class VirtioDevice(Device):
    device_type: ClassVar[int] = 0
    config_size: ClassVar[int] = 0  # bytes of the device-specific configuration

    host: VirtioHost
    event_idx: bool = prop(default=True, help="offer VIRTIO_F_EVENT_IDX")
    indirect_desc: bool = prop(default=True, help="offer VIRTIO_F_INDIRECT_DESC")
    notify_on_empty: bool = prop(default=True, help="offer VIRTIO_F_NOTIFY_ON_EMPTY to legacy drivers")
    any_layout: bool = prop(default=True, help="offer VIRTIO_F_ANY_LAYOUT to legacy drivers")
    queue_reset: bool = prop(default=True, help="offer VIRTIO_F_RING_RESET")
    status: int = u8()
    features: int = u64()  # those the driver took
    generation: int = u8()  # of the configuration
    broken: bool = boolean()
    reset_pending: bool = boolean()  # the driver asked while requests were in flight
    queues: list[VirtQueue] = transient(factory=list)
    transport: Transport | None = transient(None)
    _epoch: int = transient(0)  # completions from before a reset or load find another one

    def realize(self) -> None:
        for number, size in enumerate(self.queue_sizes()):
            queue = VirtQueue(ring=self.host.virtqueue(), number=number, max_size=size)
            queue.notifier = self.host.notifier(lambda queue=queue: self.serve(queue))  # type: ignore[misc]
            self.queues.append(queue)
        self.host.on_resume(self._serve_all)

    def queue_sizes(self) -> list[int]:
        """One for each queue."""
        raise NotImplementedError

    # What devices fill in

    def device_features(self) -> int:
        """Feature bits of the device type that are offered."""
        return 0

    def read_config(self) -> bytes:
        """The device-specific configuration, `config_size` bytes."""
        return b""

    def config_written(self, offset: int, data: bytes) -> None:
        """The driver wrote to the configuration."""

    def handle(self, queue: VirtQueue, chain: Chain) -> None:
        """A request; answered with `complete`, once, here or later."""
        raise NotImplementedError

    def handled(self) -> None:
        """All chains that were taken together have been given to `handle`."""

    def driver_ready(self) -> None:
        """The driver set DRIVER_OK."""

    # The transport's calls

    @property
    def offered(self) -> int:
        """All features; which of them an interface shows is the transport's matter."""
        generic = regs.F_VERSION_1 | regs.F_BAD_FEATURE
        for flag, bit in ((self.event_idx, regs.F_EVENT_IDX), (self.indirect_desc, regs.F_INDIRECT_DESC),
                          (self.notify_on_empty, regs.F_NOTIFY_ON_EMPTY), (self.any_layout, regs.F_ANY_LAYOUT),
                          (self.queue_reset, regs.F_RING_RESET)):  # fmt: skip
            generic |= bit if flag else 0
        return generic | self.device_features()

    @property
    def is_modern(self) -> bool:
        return bool(self.features & regs.F_VERSION_1)

    def set_status(self, value: int) -> None:
        if value == 0:
            self.request_reset()
            return
        if self.reset_pending:
            return
        if value & regs.FEATURES_OK and not self.status & regs.FEATURES_OK and self.features & ~self.offered:
            log_guest_error("%s: driver takes features %#x that were not offered", self.qdev_name,
                            self.features & ~self.offered)  # fmt: skip
            value &= ~regs.FEATURES_OK
        begins = value & ~self.status & regs.DRIVER_OK
        self.status = value | self.status & regs.NEEDS_RESET
        if begins:
            self.driver_ready()
        if self.transport is not None:
            self.transport.queues_changed()
        if begins:
            self._serve_all()

    def request_reset(self) -> None:
        """Requests in flight still write to the memory they were given, so the reset waits for them; until then the
        status does not read as 0 (virtio 1.2, 2.4.2 has the driver wait for that)."""
        if any(queue.in_flight for queue in self.queues):
            self.reset_pending = True
        else:
            self.reset()

    def enable_queue(self, queue: VirtQueue) -> None:
        flags = EVENT_IDX if self.features & regs.F_EVENT_IDX else 0
        flags |= NOTIFY_ON_EMPTY if self.features & regs.F_NOTIFY_ON_EMPTY else 0
        try:
            queue.ring.setup(queue.size, queue.desc, queue.avail, queue.used, flags)
        except VirtqueueError as e:
            self.fail(f"queue {queue.number}: {e}")
            return
        queue.enabled = True
        if self.transport is not None:
            self.transport.queues_changed()

    def reset_queue(self, queue: VirtQueue) -> None:
        """Virtio 1.2, 2.6.1."""
        queue.enabled = False
        queue.resetting = queue.in_flight > 0
        if not queue.resetting:
            queue.reset()
        if self.transport is not None:
            self.transport.queues_changed()

    def notify(self, number: int) -> None:
        """A doorbell that came as a register access."""
        if number < len(self.queues):
            self.host.ring(self.queues[number].notifier)

    # Requests

    def serve(self, queue: VirtQueue) -> None:
        """Take what is available, up to BATCH now, the rest in the next turn of the main loop. In the main loop."""
        ready = not self.is_modern or self.status & regs.DRIVER_OK
        if not (queue.enabled and ready and self.host.running) or self.broken or self.reset_pending:
            return
        left = BATCH
        while left > 0:
            try:
                chains = queue.ring.pop(left)
            except PageInError:
                return  # the machine is about to stop, and all queues are served when it goes on
            except VirtqueueError as e:
                self.fail(f"queue {queue.number}: {e}")
                return
            if not chains:
                return  # the guest will notify
            left -= len(chains)
            queue.in_flight += len(chains)
            for chain in chains:
                self.handle(queue, chain)
            self.handled()
            if self.broken or self.reset_pending or not queue.enabled:
                return
        if not queue.scheduled:
            queue.scheduled = True
            self.host.post(lambda: self._serve_again(queue))

    def _serve_again(self, queue: VirtQueue) -> None:
        queue.scheduled = False
        self.serve(queue)

    def _serve_all(self) -> None:
        for queue in self.queues:
            if queue.enabled:
                self.host.ring(queue.notifier)

    def guarded(self, done: Callable[[int], None]) -> Callable[[int], None]:
        """`done` for a backend: not called any more once the device was reset or loaded."""
        epoch = self._epoch

        def call(error: int) -> None:
            if epoch == self._epoch:
                done(error)

        return call

    def _later(self, call: Callable[[], None]) -> None:
        """When the machine goes on after a PageInError."""
        again = self.guarded(lambda error: call())
        self.host.later(lambda: again(0))

    def complete(self, queue: VirtQueue, chain: Chain, written: int) -> None:
        """Give the chain back to the guest after `written` bytes of its writable part changed."""
        if queue.enabled and not self.broken:
            try:
                self._push(queue, chain.head, written)
            except PageInError:  # the ring was moved to memory that cannot be read
                self._later(lambda: self.complete(queue, chain, written))
                return
        queue.in_flight -= 1
        if queue.resetting and not queue.in_flight:
            queue.reset()
        if self.reset_pending and not any(q.in_flight for q in self.queues):
            self.reset()

    def _push(self, queue: VirtQueue, head: int, written: int) -> None:
        try:
            wanted = queue.ring.push(head, written)
        except VirtqueueError as e:
            self.fail(f"queue {queue.number}: {e}")
            return
        if wanted and self.transport is not None:
            self.transport.queue_interrupt(queue.vector)

    def fail(self, why: str) -> None:
        """The guest broke the rules: virtio 1.2, 2.1.2. Nothing is taken or given back until it resets the device."""
        log_guest_error("%s: %s", self.qdev_name, why)
        self.broken = True
        if self.is_modern:
            self.status |= regs.NEEDS_RESET
            self.config_changed()

    def config_changed(self) -> None:
        """Tell the driver, if there is one, to look at configuration and status."""
        self.generation = self.generation + 1 & 0xFF
        if self.status & regs.DRIVER_OK and self.transport is not None:
            self.transport.config_interrupt()

    # Reset and load

    def reset(self) -> None:
        super().reset()
        self._epoch += 1
        for queue in self.queues:
            queue.reset()
        if self.transport is not None:
            self.transport.queues_changed()

    def post_load(self) -> None:
        """The queues' fields are loaded by now, and guest memory is in place."""
        self._epoch += 1
        for queue in self.queues:
            queue.in_flight = 0
            if queue.enabled:
                self._restore(queue)
        if self.reset_pending:
            self.reset()
        if self.transport is not None:
            self.transport.queues_changed()

    def _restore(self, queue: VirtQueue) -> None:
        last_avail, used_idx, heads = queue.last_avail, queue.used_idx, queue.taken_heads()
        queue.enabled = False
        self.enable_queue(queue)
        if not queue.enabled:
            return
        queue.ring.restore(last_avail, used_idx)
        if self.broken or self.reset_pending:
            return
        self._retake(queue, heads)

    def _retake(self, queue: VirtQueue, heads: list[int]) -> None:
        """Handle chains again; `heads` gets shorter by those that were."""
        while heads:
            try:
                chain = queue.ring.retake(heads[0])
            except PageInError:
                self._later(lambda: self._retake(queue, heads))
                break
            except VirtqueueError as e:
                self.fail(f"queue {queue.number}: {e}")
                break
            del heads[0]
            queue.in_flight += 1
            self.handle(queue, chain)
        self.handled()
