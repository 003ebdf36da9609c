"""Jobs: one at a time, worker steps in between, failures and cancelling put things back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qemupy.errors import BackendError, MonitorError, QemupyError
from qemupy.main_loop.jobs import Body, JobCancelled, Jobs
from qemupy.main_loop.loop import MainLoop
from qemupy.main_loop.workers import Workers


class Bench:
    def __init__(self) -> None:
        self.loop = MainLoop()
        self.workers = Workers(self.loop)
        self.jobs = Jobs(self.loop, self.workers)
        self.ends: list[QemupyError | None] = []

    def start(self, body: Body) -> None:
        self.jobs.start("savevm", body, self.ends.append)

    def finish(self) -> None:
        assert self.loop.run_until(lambda: self.jobs.current is None)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.workers.stop()
    made.loop.close()


def test_steps_run_on_workers_and_their_results_come_back(bench: Bench) -> None:
    seen: list[object] = []

    def body() -> Body:
        seen.append((yield lambda: 6 * 7))
        seen.append((yield None))
        with pytest.raises(OSError, match="gone"):
            yield _fail
        seen.append("end")

    bench.start(body())
    bench.finish()
    assert seen == [42, None, "end"] and bench.ends == [None]


def _fail() -> None:
    raise OSError(5, "gone")


def test_a_second_job_is_refused_by_the_name_of_the_first(bench: Bench) -> None:
    def body() -> Body:
        yield None

    bench.start(body())
    with pytest.raises(MonitorError, match="'stop' is not possible while 'savevm' is running"):
        bench.jobs.check_idle("stop")
    bench.finish()
    bench.jobs.check_idle("stop")


def test_a_failed_job_says_why(bench: Bench) -> None:
    def body() -> Body:
        yield None
        raise BackendError("disk full")

    bench.start(body())
    bench.finish()
    assert str(bench.ends[0]) == "disk full"


def test_cancelling_lets_the_job_put_things_back(bench: Bench) -> None:
    steps: list[str] = []

    def body() -> Body:
        try:
            while True:
                yield None
        except JobCancelled:
            yield lambda: steps.append("worker")
            steps.append("put back")
            raise

    bench.start(body())
    bench.jobs.cancel()
    bench.finish()
    assert steps == ["worker", "put back"] and isinstance(bench.ends[0], JobCancelled)
