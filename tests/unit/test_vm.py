"""Run state, requests from vCPU threads, orderly ends; on a fake accelerator with real threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from qemupy.config import Config
from qemupy.hw.core import Device, on_write, u8
from qemupy.vcpu.accel import Exit, FakeAccel
from qemupy.vm import RunState, Vm


class Latch(Device):
    value: int = u8(reset=7)

    @on_write(0)
    def write_value(self, value: int) -> None:
        self.value = value


class Harness:
    def __init__(self, **options: object) -> None:
        self.accel = FakeAccel()
        self.vm = Vm(Config(**options), self.accel)  # type: ignore[arg-type]
        self.latch = Latch()
        self.vm.add("latch", self.latch)
        self.vm.ports.map(0x80, self.latch.bank())
        self.vm.add_vcpu("qemu64")
        self.vm.add_vcpu("qemu64")

    def run(self, *steps: Callable[[], bool | None]) -> int:
        """Run the machine; the steps happen one by one in its main loop, one that answers False once more later."""

        def feed() -> None:
            for step in steps:
                while self._step(step) is False:
                    pass

        feeder = threading.Thread(target=feed)
        feeder.start()
        guard = threading.Timer(10, lambda: self.vm.loop.quit())
        guard.start()
        status = self.vm.run()
        guard.cancel()
        feeder.join()
        return status

    def _step(self, step: Callable[[], bool | None]) -> bool | None:
        answers: list[bool | None] = []
        tried = threading.Event()

        def attempt() -> None:
            try:
                answers.append(step())
            finally:
                tried.set()

        time.sleep(0.02)
        self.vm.loop.post(attempt)
        tried.wait(10)
        return answers[0] if answers else None


def test_power_on_stop_cont_shutdown() -> None:
    h = Harness()
    seen: list[tuple[RunState, bool]] = []

    def look() -> bool:
        """The threads need a moment to get going."""
        running = any(t.running for t in h.vm.manager.threads)
        if running != h.vm.running:
            return False
        seen.append((h.vm.run_state, running))
        return True

    status = h.run(look, h.vm.stop, look, h.vm.cont, look, lambda: h.vm.request_shutdown("host-ui", 3))
    assert status == 3 and [v.resets for v in h.accel.vcpus] == [1, 1]
    assert seen == [(RunState.RUNNING, True), (RunState.PAUSED, False), (RunState.RUNNING, True)]
    assert h.vm.run_state == RunState.SHUTDOWN


def test_s_leaves_the_machine_in_prelaunch_with_time_standing() -> None:
    h = Harness(paused=True)
    times: list[int] = []

    def look() -> None:
        assert h.vm.run_state == RunState.PRELAUNCH
        times.append(h.vm.loop.virtual.now())

    h.run(look, look, lambda: h.vm.request_shutdown("host-ui"))
    assert times == [0, 0]


def test_a_reset_asked_for_in_an_upcall_happens_with_the_vcpus_idle() -> None:
    h = Harness()
    idle: list[bool] = []
    h.vm.on_reset(lambda: idle.append(not any(t.running for t in h.vm.manager.threads)))

    def upcall() -> None:
        """What a vCPU thread does inside a port write."""
        with h.vm.bql:
            h.accel.upcalls.pio_write(0x80, 1, 0x55)
            h.vm.request_reset("guest-reset")
            assert h.latch.value == 0x55

    thread = threading.Thread(target=upcall)
    h.run(thread.start, thread.join, lambda: h.vm.request_shutdown("host-ui"))
    assert idle == [True, True] and h.latch.value == 7 and [v.resets for v in h.accel.vcpus] == [2, 2]


def test_triple_fault_resets_or_ends_with_no_reboot() -> None:
    h = Harness()
    h.accel.vcpus[0].exits.append(Exit.SHUTDOWN)
    h.run(lambda: None, lambda: h.vm.request_shutdown("host-ui"))
    assert [v.resets for v in h.accel.vcpus] == [2, 2]
    h = Harness(reboot=False)
    h.accel.vcpus[1].exits.append(Exit.SHUTDOWN)
    assert h.run() == 0 and h.vm.run_state == RunState.SHUTDOWN and [v.resets for v in h.accel.vcpus] == [1, 1]


def test_no_shutdown_leaves_a_stopped_machine() -> None:
    h = Harness(shutdown=False)
    states: list[RunState] = []
    h.run(
        lambda: h.vm.request_shutdown("guest-shutdown"),
        lambda: states.append(h.vm.run_state),
        h.vm.cont,
        lambda: states.append(h.vm.run_state),
        lambda: h.vm.request_shutdown("host-signal"),
    )
    assert states == [RunState.SHUTDOWN, RunState.RUNNING] and h.accel.vcpus[0].resets == 2


def test_a_failing_handler_stops_the_machine_and_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    h = Harness()

    def fail() -> None:
        raise ZeroDivisionError("in a handler")

    assert h.run(fail) == 1 and h.vm.run_state == RunState.INTERNAL_ERROR
    assert "ZeroDivisionError: in a handler" in capfd.readouterr().err


def test_powerdown_and_nmi_reach_their_targets() -> None:
    h = Harness()
    pressed: list[int] = []
    h.vm.on_powerdown(lambda: pressed.append(1))
    h.run(h.vm.powerdown, h.vm.nmi, lambda: h.vm.request_shutdown("host-ui"))
    assert pressed == [1] and [v.nmis for v in h.accel.vcpus] == [1, 1]


def test_paused_nests_with_stop() -> None:
    h = Harness()

    def look() -> None:
        with h.vm.paused():
            h.vm.stop()
            assert not any(t.running for t in h.vm.manager.threads)
        assert not any(t.running for t in h.vm.manager.threads)
        h.vm.cont()

    h.run(look, lambda: h.vm.request_shutdown("host-ui"))
    assert h.vm.exit_status == 0
