"""vCPU threads and their manager: who may run, how all are brought to a stop.

A thread passes a gate before every `run`; the gate is shut while anybody holds the machine paused, or while a run-state
request waits for the main loop. Whoever waits for the threads drops the BQL meanwhile, since a vCPU may be waiting for
it inside an upcall.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qemupy.main_loop.bql import Bql
from qemupy.vcpu.accel import Exit, Vcpu


class VcpuThread:
    def __init__(self, vcpu: Vcpu, manager: VcpuManager) -> None:
        self.vcpu, self._manager = vcpu, manager
        self.running = False  # guarded by the manager's condition
        self.thread = threading.Thread(target=self._main, name=f"vcpu-{vcpu.index}", daemon=True)

    def _main(self) -> None:
        manager = self._manager
        while manager.enter(self):
            try:
                reason = self.vcpu.run()
            finally:
                manager.leave(self)
            if reason != Exit.KICK:
                manager.exited(self.vcpu, Exit(reason))


class VcpuManager:
    """`exited(vcpu, reason)` is called on the vCPU's thread for every exit that is not a kick; it must shut the gate
    (through a request) unless the vCPU may simply go on."""

    def __init__(self, bql: Bql, exited: Callable[[Vcpu, Exit], None]) -> None:
        self.exited = exited
        self._bql = bql
        self._condition = threading.Condition()
        self._shut = 1  # how many hold the gate shut; created paused
        self._ending = False
        self.threads: list[VcpuThread] = []

    @property
    def vcpus(self) -> list[Vcpu]:
        return [t.vcpu for t in self.threads]

    def add(self, vcpu: Vcpu) -> None:
        self.threads.append(VcpuThread(vcpu, self))

    def start_threads(self) -> None:
        for each in self.threads:
            each.thread.start()

    def enter(self, thread: VcpuThread) -> bool:
        """Called by a vCPU thread: wait at the gate; False ends the thread."""
        with self._condition:
            while self._shut and not self._ending:
                self._condition.wait()
            thread.running = not self._ending
            return thread.running

    def leave(self, thread: VcpuThread) -> None:
        with self._condition:
            thread.running = False
            self._condition.notify_all()

    def shut(self) -> None:
        """Keep vCPUs from entering guest code and tell those inside to leave. Does not wait; callable in an upcall."""
        with self._condition:
            self._shut += 1
        for each in self.threads:
            each.vcpu.kick()

    def open(self) -> None:
        with self._condition:
            self._shut -= 1
            self._condition.notify_all()

    def wait_idle(self) -> None:
        """Until no vCPU is in guest code. The gate is shut; the caller holds the BQL and is no vCPU thread."""
        self._bql.release()
        try:
            with self._condition:
                while any(t.running for t in self.threads):
                    if not self._condition.wait(0.01):
                        for each in self.threads:
                            each.vcpu.kick()
        finally:
            self._bql.acquire()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """All vCPUs at instruction boundaries; nests."""
        self.shut()
        try:
            self.wait_idle()
            yield
        finally:
            self.open()

    def end(self) -> None:
        """End the threads. The caller holds the BQL."""
        with self._condition:
            self._ending = True
            self._condition.notify_all()
        for each in self.threads:
            each.vcpu.kick()
        if any(t.thread.is_alive() for t in self.threads):
            self.wait_idle()
            for each in self.threads:
                each.thread.join()
