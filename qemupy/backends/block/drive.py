"""`Drive`: the BlockBackend of one drive over the top node of its graph, or over none (an empty CD-ROM drive).

Requests run on worker threads, and are completed there. A read that the host has in its page cache is done at once;
even then its completion comes from the main loop, because a device must not be called back from inside its own request.
One that can do without a completion uses `read_now`. A write into the page cache is left to the vCPU that asked for it,
if the one before it was done soon.

What happens on an I/O error is the drive's policy (`werror`, `rerror`): the guest is told, or is not, or the machine
stops and the request waits until the machine goes on, when it is tried again. EFAULT always stops it: that is not the
disk, but guest memory that lies in a snapshot's file and cannot be read.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence

from qemupy.backends.block.base import Completion
from qemupy.backends.block.node import Node
from qemupy.backends.block.opening import Flags, Graph
from qemupy.backends.block.permissions import Permission, Use
from qemupy.errors import BackendError
from qemupy.main_loop.loop import MainLoop
from qemupy.main_loop.workers import Workers
from qemupy.records import record
from qemupy.scatter import total

AT_ONCE = 128 << 10  # bytes copied from the page cache while the vCPU waits; longer copies are for a worker
SHORT = 400_000  # nanoseconds that a vCPU spends on a write itself, where waking two threads takes some 100,000
READ, WRITE, FLUSH, DISCARD = "rd", "wr", "flush", "unmap"


@record(frozen=True)
class DrivePolicy:
    """How a drive treats caches and errors; the defaults are QEMU's."""

    writethrough: bool = False
    werror: str = "enospc"  # report, ignore, stop, enospc (stop on ENOSPC, else report)
    rerror: str = "report"  # report, ignore, stop

    def on_error(self, kind: str, error: int) -> str:
        """report, ignore or stop."""
        action = self.rerror if kind == READ else self.werror
        if action == "enospc":
            return "stop" if error == errno.ENOSPC else "report"
        return action


class Request:
    """One request of the guest: `run` does it, without the BQL, as often as it takes; `done` is called once."""

    __slots__ = ("done", "kind", "length", "merged", "run", "started", "took")

    def __init__(self, kind: str, length: int, run: Callable[[], None], done: Completion, merged: int = 0) -> None:
        self.kind, self.length, self.run, self.done, self.merged = kind, length, run, done, merged
        self.started = time.monotonic_ns()
        self.took = 0  # nanoseconds of the last attempt

    def attempt(self) -> int:
        """0 or an errno. Without the BQL."""
        begin = time.monotonic_ns()
        try:
            self.run()
        except OSError as e:
            return e.errno or errno.EIO
        finally:
            self.took = time.monotonic_ns() - begin
        return 0


class Counts:
    """What `info blockstats` shows: bytes, operations and nanoseconds of each kind."""

    def __init__(self) -> None:
        self.bytes = dict.fromkeys((READ, WRITE, FLUSH, DISCARD), 0)
        self.operations = dict(self.bytes)
        self.merged = dict(self.bytes)
        self.failed = dict(self.bytes)
        self.nanoseconds = dict(self.bytes)
        self.last = 0  # when the last request ended, in time.monotonic_ns

    def add(self, request: Request, error: int) -> None:
        if error:
            self.last = time.monotonic_ns()
            self.failed[request.kind] += 1
        else:
            self.succeeded(request.kind, request.length, request.started, request.merged)

    def succeeded(self, kind: str, length: int, started: int, merged: int) -> None:
        self.last = time.monotonic_ns()
        self.bytes[kind] += length
        self.operations[kind] += 1 + merged
        self.merged[kind] += merged
        self.nanoseconds[kind] += (self.last - started) * (1 + merged)

    def describe(self) -> str:
        """In QEMU's words."""
        shown = {
            **{f"{kind}_bytes": self.bytes[kind] for kind in (READ, WRITE)},
            **{f"{kind}_operations": self.operations[kind] for kind in (READ, WRITE, FLUSH)},
            **{f"{kind}_total_time_ns": self.nanoseconds[kind] for kind in (WRITE, READ, FLUSH)},
            **{f"{kind}_merged": self.merged[kind] for kind in (READ, WRITE)},
            "idle_time_ns": time.monotonic_ns() - self.last if self.last else 0,
        }
        return " ".join(f"{key}={value}" for key, value in shown.items())


class Drive:
    def __init__(self, name: str, loop: MainLoop, workers: Workers, graph: Graph, node: Node | None, *,
                 removable: bool = False, policy: DrivePolicy | None = None) -> None:  # fmt: skip
        self.name, self.graph, self.node, self.removable = name, graph, node, removable
        self.policy = policy if policy is not None else DrivePolicy()
        self.locked = False  # by the guest (PREVENT ALLOW MEDIUM REMOVAL)
        self.tray_open = False
        self.in_flight = 0
        self.attached_to = ""  # the device's path, for `info block`
        self.counts = Counts()
        self.flags = Flags()  # what a medium inserted later is opened with
        self.anonymous = False  # made for a device alone; `name` is only for ourselves
        self.suspended: list[Request] = []  # failed, to be tried again when the machine goes on
        self.on_stop: Callable[[Drive, int], None] | None = None  # an error stops the machine: (drive, errno)
        self._loop, self._workers = loop, workers
        self._changed: list[Callable[[], None]] = []
        self._use: Use | None = None
        self._shares_writing = False
        self._held: list[Request] | None = None  # what waits while somebody else works on the image
        self._last_write = SHORT  # nanoseconds

    # The medium

    @property
    def length(self) -> int:
        return self.node.length if self.node is not None else 0

    @property
    def readonly(self) -> bool:
        return self.node is not None and self.node.readonly

    @property
    def inserted(self) -> bool:
        return self.node is not None

    def attach(self, path: str, *, share_rw: bool = False, writable: bool = False) -> None:
        """A device at `path` takes the drive: from now on others may write to the image only with `share_rw`.
        Raises BackendError if another user of the image forbids it, if there already is a device, or if the device is
        one that must be `writable` and the image is not."""
        if self.attached_to:
            raise BackendError(f"Drive '{self.name}' is already in use by {self.attached_to}")
        if writable and self.node is not None and self.node.readonly:
            if self.node.flags.readonly:
                raise BackendError("Block node is read-only")
            self.node.reopen(False)  # says why it was opened read-only
        self._shares_writing = share_rw
        self.attached_to = path
        try:
            self._begin_use()
        except BaseException:
            self.attached_to = ""
            raise

    def detach(self) -> None:
        self._end_use()
        self.attached_to = ""

    def _begin_use(self) -> None:
        if self.node is None:
            return
        used = Permission.CONSISTENT_READ if self.node.readonly else Permission.CONSISTENT_READ | Permission.WRITE
        shared = Permission.CONSISTENT_READ | Permission.WRITE_UNCHANGED | Permission.RESIZE
        if self._shares_writing:
            shared |= Permission.WRITE
        use = Use(f"block device '{self.name}'", "root", used, shared)
        self.node.add_use(use)
        self._use = use

    def _end_use(self) -> None:
        if self._use is not None and self.node is not None:
            self.node.remove_use(self._use)
        self._use = None

    def on_media_change(self, changed: Callable[[], None]) -> None:
        self._changed.append(changed)

    def change(self, node: Node | None) -> None:
        """Insert (the reference passes to the drive) or eject, with no request in flight."""
        self._end_use()
        old, self.node = self.node, node
        if old is not None:
            self.graph.release(old)
        if self.attached_to:
            self._begin_use()
        self.media_changed()

    def media_changed(self) -> None:
        """The medium, or its size, is not what it was: tell the device."""
        for changed in self._changed:
            changed()

    # Requests

    def _refusal(self, offset: int, length: int, write: bool) -> int:
        if self.node is None:
            return errno.ENOMEDIUM
        if write and self.node.readonly:
            return errno.EROFS
        return 0 if offset >= 0 and offset + length <= self.node.length else errno.EINVAL

    def read(self, offset: int, data: bytearray | memoryview, done: Completion) -> None:
        self.readv(offset, (memoryview(data),), done)

    def write(self, offset: int, data: bytes | bytearray | memoryview, done: Completion) -> None:
        self.writev(offset, (memoryview(data),), done)

    def readv(self, offset: int, buffers: Sequence[memoryview], done: Completion, merged: int = 0) -> None:
        length = total(buffers)
        error = self._refusal(offset, length, False)
        node = self.node
        if error or node is None:
            self._refuse(error, done)
            return
        request = Request(READ, length, lambda: node.readv(offset, buffers), done, merged)
        if length <= AT_ONCE and self._held is None and node.read_cached(offset, buffers):
            self.in_flight += 1
            self._workers.soon(lambda: self._finish(request, 0))
        else:
            self._start(request)

    def read_now(self, offset: int, buffers: Sequence[memoryview], merged: int = 0) -> bool:
        node, length = self.node, total(buffers)
        if node is None or self._held is not None or self._workers.timed or self._refusal(offset, length, False):
            return False
        started = time.monotonic_ns()
        if not node.read_cached(offset, buffers):
            return False
        self.counts.succeeded(READ, length, started, merged)
        return True

    def writev(self, offset: int, buffers: Sequence[memoryview], done: Completion, merged: int = 0) -> None:
        length = total(buffers)
        error = self._refusal(offset, length, True)
        node = self.node
        if error or node is None:
            self._refuse(error, done)
            return
        detect, durable = node.flags.detect_zeroes, self.policy.writethrough

        def run() -> None:
            if detect != "off" and _all_zeroes(buffers):
                node.write_zeroes(offset, length, detect == "unmap")
                if durable:
                    node.flush()
            elif durable:
                node.writev_durable(offset, buffers)
            else:
                node.writev(offset, buffers)

        self._start(Request(WRITE, length, run, done, merged))

    def write_zeroes(self, offset: int, length: int, unmap: bool, done: Completion) -> None:
        error = self._refusal(offset, length, True)
        node = self.node
        if error or node is None:
            self._refuse(error, done)
            return

        def run() -> None:
            node.write_zeroes(offset, length, unmap and node.flags.discard)
            if self.policy.writethrough:
                node.flush()

        self._start(Request(WRITE, length, run, done))

    def flush(self, done: Completion) -> None:
        node = self.node
        if node is None:
            self._refuse(errno.ENOMEDIUM, done)
        else:
            self._start(Request(FLUSH, 0, (lambda: None) if node.flags.no_flush else node.flush, done))

    def discard(self, offset: int, length: int, done: Completion) -> None:
        error = self._refusal(offset, length, True)
        node = self.node
        if error or node is None:
            self._refuse(error, done)
        elif not node.flags.discard:
            self._refuse(0, done)
        else:
            self._start(Request(DISCARD, length, lambda: node.discard(offset, length), done))

    def _refuse(self, error: int, done: Completion) -> None:
        """Answer without any I/O; the error policy is not asked."""

        def answer() -> None:
            self.in_flight -= 1
            done(error)

        self.in_flight += 1
        self._workers.soon(answer)

    def _start(self, request: Request) -> None:
        if self._held is not None:
            self._held.append(request)
            return
        self.in_flight += 1
        node = self.node
        short = request.kind == WRITE and self._last_write < SHORT and node is not None and node.buffered
        self._workers.request(request.attempt, lambda error: self._finish(request, error), short)

    def _finish(self, request: Request, error: int) -> None:
        self.in_flight -= 1
        self.counts.add(request, error)
        if request.kind == WRITE:
            self._last_write = request.took
        if error:
            action = self.policy.on_error(request.kind, error) if error != errno.EFAULT else "stop"
            if action == "stop" and self.on_stop is not None:
                self.suspended.append(request)
                self.on_stop(self, error)
                return
            if action == "ignore":
                error = 0
        request.done(error)

    def hold(self) -> None:
        """New requests wait, not counted as in flight, until `resume`; those under way go on."""
        self._held = []

    def resume(self) -> None:
        waiting, self._held = self._held, None
        for request in waiting or ():
            self._start(request)

    def retry(self) -> None:
        """The machine goes on: try again what stopped it, in the order it was asked for."""
        waiting, self.suspended = self.suspended, []
        for request in waiting:
            self._start(request)

    def forget_suspended(self) -> None:
        """The machine was reset or became another one: nobody waits for these any more, nor for what is held back."""
        self.suspended.clear()
        if self._held is not None:
            self._held.clear()

    def close(self) -> None:
        """Flush and let go of the image; requests must have been drained."""
        node = self.node
        if node is not None:
            try:
                if not self.in_flight:  # else it hangs, and a flush would hang as well
                    node.flush()
            except OSError:
                pass  # nobody is left to tell
            self._end_use()
            self.node = None
            self.graph.release(node)


def _all_zeroes(buffers: Sequence[memoryview]) -> bool:
    """Most data shows at one of its ends that it is not zero; only then is it copied to be looked at."""
    return all(not b[0] and not b[-1] and not bytes(b).lstrip(b"\0") for b in buffers if len(b))
