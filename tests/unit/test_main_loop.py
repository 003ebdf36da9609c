"""Loop, clocks, timers, posting and workers, on real threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from qemupy.main_loop.clock import ManualClock, Timer
from qemupy.main_loop.loop import MainLoop
from qemupy.main_loop.workers import TimedWorkers, Workers


@pytest.fixture
def loop() -> Iterator[MainLoop]:
    made = MainLoop()
    yield made
    made.close()


def test_manual_clock_fires_in_order_at_their_times() -> None:
    clock, fired = ManualClock(), list[tuple[str, int]]()
    a = clock.timer(lambda: fired.append(("a", clock.now())))
    b = clock.timer(lambda: fired.append(("b", clock.now())))
    c = clock.timer(lambda: fired.append(("c", clock.now())))
    a.mod(30)
    b.mod(10)
    c.mod(20)
    c.cancel()
    b.mod(15)
    clock.advance(29)
    assert fired == [("b", 15)]
    clock.advance(1)
    assert fired == [("b", 15), ("a", 30)] and a.deadline is None and clock.now() == 30


def test_a_timer_set_to_its_old_deadline_after_cancel_fires_once() -> None:
    clock, fired = ManualClock(), list[int]()
    timer = clock.timer(lambda: fired.append(clock.now()))
    timer.mod(5)
    timer.cancel()
    timer.mod(5)
    clock.advance(10)
    assert fired == [5]


def test_kilohertz_ticks_are_not_lost(loop: MainLoop) -> None:
    ticks: list[int] = []
    timers: list[Timer] = []

    def tick() -> None:
        ticks.append(loop.realtime.now())
        timers[0].mod(start + (len(ticks) + 1) * 1_000_000)

    timers.append(loop.realtime.timer(tick))
    start = loop.realtime.now()
    timers[0].mod(start + 1_000_000)
    assert loop.run_until(lambda: len(ticks) >= 100)
    late = sorted(t - (start + (i + 1) * 1_000_000) for i, t in enumerate(ticks))
    assert late[50] < 700_000, f"median lateness {late[50]} ns"


def test_virtual_clock_stands_while_stopped(loop: MainLoop) -> None:
    fired: list[int] = []
    loop.virtual.timer(lambda: fired.append(1)).mod(5_000_000)
    time.sleep(0.02)
    assert loop.virtual.now() == 0 and not loop.run_until(lambda: bool(fired), 0.02)
    loop.virtual.start()
    assert loop.run_until(lambda: bool(fired))
    loop.virtual.stop()
    stood = loop.virtual.now()
    time.sleep(0.01)
    assert loop.virtual.now() == stood


class FollowingClock:
    """What the core makes of the calls it gets."""

    def __init__(self) -> None:
        self.running, self.value = False, 0

    def now(self) -> int:
        return self.value + time.monotonic_ns() if self.running else self.value

    def sync(self, running: bool, value: int) -> None:
        self.running, self.value = running, value


def test_the_core_follows_the_virtual_clock(loop: MainLoop) -> None:
    core = FollowingClock()
    loop.virtual.core = core
    loop.virtual.set(9_000)
    assert core.now() == 9_000
    loop.virtual.start()
    assert 0 <= -core.now() + loop.virtual.now() < 1_000_000
    loop.virtual.stop()
    assert loop.virtual.now() == core.now() > 9_000


def test_post_from_another_thread_wakes_the_loop(loop: MainLoop) -> None:
    got: list[int] = []

    def other() -> None:
        time.sleep(0.05)
        loop.post(lambda: got.append(threading.get_ident()))

    thread = threading.Thread(target=other)
    thread.start()
    before = time.monotonic()
    assert loop.run_until(lambda: bool(got)) and got == [threading.get_ident()]
    assert time.monotonic() - before < 1
    thread.join()


def test_descriptors_pipes_and_plain_files(loop: MainLoop, tmp_path: object) -> None:
    read, write = os.pipe()
    got: list[bytes] = []
    loop.watch(read, read=lambda: got.append(os.read(read, 100)))
    os.write(write, b"x")
    assert loop.run_until(lambda: bool(got)) and got == [b"x"]
    loop.unwatch(read)
    path = os.path.join(str(tmp_path), "plain")
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"abc", 0)
    loop.watch(fd, read=lambda: got.append(os.read(fd, 2)))
    assert loop.run_until(lambda: got[1:3] == [b"ab", b"c"])
    loop.unwatch(fd)
    for each in (read, write, fd):
        os.close(each)


def test_workers_answer_in_the_loop(loop: MainLoop) -> None:
    workers, got = Workers(loop, limit=4), list[tuple[int, int]]()
    barrier = threading.Barrier(4, timeout=5)

    def job(i: int) -> int:
        barrier.wait()
        return i

    for i in range(4):
        workers.submit(lambda i=i: job(i), lambda r: got.append((r, threading.get_ident())))  # type: ignore[misc]
    assert loop.run_until(lambda: len(got) == 4)
    assert sorted(r for r, _ in got) == [0, 1, 2, 3] and {t for _, t in got} == {threading.get_ident()}
    workers.stop()


def test_disk_requests_complete_on_their_worker(loop: MainLoop) -> None:
    """With the BQL; who turns the loop until one is done does not wait for its time to be over. Errors come from the
    loop, and what a completion raises goes where the loop's own callbacks' does."""
    workers, got = Workers(loop), list[tuple[int, int]]()
    here, failed = threading.get_ident(), list[BaseException]()
    loop.on_exception = failed.append

    def done(error: int) -> None:
        assert loop.bql._lock.locked()  # type: ignore[attr-defined]
        got.append((error, threading.get_ident()))
        if error == 0 and len(got) == 2:
            raise KeyError("a device")

    begin = threading.Event()
    with loop.bql:
        for n in range(2):
            workers.request(lambda: 0 if begin.wait(5) else 1, done)
            threading.Timer(0.05, begin.set).start()
            before = time.monotonic()
            while len(got) == n:
                loop.iterate(2_000_000_000)
            assert time.monotonic() - before < 1
        assert [error for error, _ in got] == [0, 0] and here not in {thread for _, thread in got}
        assert workers.in_flight == 0 and [type(e) for e in failed] == [KeyError]
        workers.request(lambda: 5, done)
        while len(got) == 2:
            loop.iterate(50_000_000)
    assert got[2] == (5, here)
    workers.stop()


def test_quit_from_a_callback_and_from_a_thread(loop: MainLoop) -> None:
    loop.post(loop.quit)
    loop.run()
    threading.Timer(0.05, loop.quit).start()
    loop.run()


def test_a_posted_call_may_turn_the_loop() -> None:
    """Draining the disks while a run-state request is served does."""
    loop = MainLoop()
    order: list[int] = []
    with loop.bql:
        loop.post(lambda: (loop.iterate(), order.append(1)))  # type: ignore[arg-type,return-value]
        loop.post(lambda: order.append(2))
        loop.iterate()
        loop.iterate()
    assert order == [2, 1]
    loop.close()


def test_every_call_posted_from_another_thread_is_served() -> None:
    """Whether the loop is awake, goes to sleep or sleeps: no call waits for the next event."""
    loop = MainLoop()
    served: list[int] = []

    def poster() -> None:
        for n in range(3000):
            loop.post(lambda n=n: served.append(n))  # type: ignore[misc]
            if n % 7 == 0:
                time.sleep(0.00002)

    thread = threading.Thread(target=poster)
    began = time.monotonic()
    thread.start()
    assert loop.run_until(lambda: len(served) == 3000)
    thread.join()
    assert served == list(range(3000)) and time.monotonic() - began < 5
    slow: list[float] = []
    for _ in range(50):
        start = time.monotonic()
        later = threading.Timer(0.002, lambda start=start: loop.post(lambda: slow.append(time.monotonic() - start)))
        later.start()
        count = len(slow)
        with loop.bql:
            loop.iterate(2_000_000_000)
            while len(slow) == count:
                loop.iterate(2_000_000_000)
    assert max(slow) < 1, "a call waited for the end of the sleep"
    loop.close()


def test_timed_workers_answer_at_a_time_of_the_guest(loop: MainLoop) -> None:
    """However fast or slow the host is; equal times in the order of asking; a standing clock can be done without."""
    clock = ManualClock(5000)
    workers, got = TimedWorkers(loop, clock), list[tuple[str, int]]()
    slow = threading.Event()

    def late() -> str:
        slow.wait(10)
        return "late"

    def done(name: str) -> None:
        got.append((name, clock.now()))

    workers.submit(late, done)
    workers.submit(lambda: "fast", done)
    workers.soon(lambda: done("none"))
    clock.advance(TimedWorkers.LATENCY_NS - 1)
    assert got == [] and workers.in_flight == 2
    threading.Timer(0.05, slow.set).start()
    clock.advance(1)
    at = 5000 + TimedWorkers.LATENCY_NS
    assert got == [("late", at), ("fast", at), ("none", at)] and workers.in_flight == 0
    workers.submit(lambda: "drained", done)
    workers.finish_all()
    clock.advance(1_000_000)
    assert got[3:] == [("drained", at)]
    workers.stop()


class FakeCounter:
    """A core whose instruction count the test moves."""

    def __init__(self) -> None:
        self.time = 0
        self.deadline: int | None = None
        self.synced: list[tuple[bool, int]] = []

    def now(self) -> int:
        return self.time

    def set_deadline(self, deadline: int | None) -> None:
        self.deadline = deadline

    def sync(self, running: bool, value: int) -> None:
        self.synced.append((running, value))

    def drift(self) -> tuple[int, int, int]:
        return 0, 0, 0


def test_a_counted_clock_leaves_its_timers_to_the_core(loop: MainLoop) -> None:
    core, fired = FakeCounter(), list[int]()
    clock = loop.count_instructions(core)
    assert loop.virtual is clock
    clock.start()
    first, second = (clock.timer(lambda: fired.append(core.time)) for _ in range(2))
    first.mod(100)
    assert core.deadline == 100
    second.mod(50)
    assert core.deadline == 50
    core.time = 60
    assert not loop.run_until(lambda: bool(fired), 0.02)  # the main loop does not look
    clock.run_due()
    assert fired == [60] and core.deadline == 100
    core.time = 100
    clock.run_due()
    assert fired == [60, 100] and core.deadline is None
    clock.stop()
    assert core.synced == [(True, 0), (False, 100)]
