"""Jobs: long work on the machine as a whole (savevm, loadvm, delvm, migrate, commit), one at a time.

A job is a generator that runs in the main loop with the BQL. What it yields is done elsewhere: a callable runs on a
worker and its result comes back (an OSError or QemupyError it raises is raised at the `yield`); None lets the loop take
a turn. In between the loop serves monitors, timers and the guest. A job that fails raises a QemupyError after it has
put things back; so does one that is cancelled, which gets a JobCancelled at its next `yield`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

from qemupy.errors import MonitorError, QemupyError
from qemupy.main_loop.loop import MainLoop
from qemupy.main_loop.workers import Workers

T = TypeVar("T")
Step = Callable[[], Any] | None
Body = Generator[Step, Any, None]
Done = Callable[[QemupyError | None], None]


class JobCancelled(QemupyError):
    """The user cancelled the job, or the program ends."""

    def __init__(self) -> None:
        super().__init__("cancelled")


class Job:
    """`cancelled` is for the job's own workers to look at; `on_cancel` wakes one that waits for a peer."""

    def __init__(self, name: str, body: Body, done: Done) -> None:
        self.name, self.body, self.done = name, body, done
        self.cancelled = False
        self.final = False  # the step that runs may have succeeded for good: only its own failure ends the job
        self.on_cancel: Callable[[], None] | None = None


class Jobs:
    def __init__(self, loop: MainLoop, workers: Workers) -> None:
        self._loop, self._workers = loop, workers
        self.current: Job | None = None
        self.stepping = False  # the job's own code is on the stack

    def check_idle(self, command: str) -> None:
        """MonitorError if a job runs: `command` would change what it works on."""
        if self.current is not None:
            raise MonitorError(f"'{command}' is not possible while '{self.current.name}' is running")

    def start(self, name: str, body: Body, done: Done) -> Job:
        """Begin; `done(error)` is called at the end, maybe before this returns. In the main loop, as all here."""
        self.check_idle(name)
        job = self.current = Job(name, body, done)
        self._advance(job, lambda: body.send(None))
        return job

    def _advance(self, job: Job, resume: Callable[[], Step]) -> None:
        self.stepping = True
        try:
            step = resume()
            self.stepping = False
        except StopIteration:
            self._finish(job, None)
        except QemupyError as e:
            self._finish(job, e)
        except BaseException:
            self._finish(job, MonitorError(f"internal error in '{job.name}'"))
            raise
        else:
            self._run_step(job, step)

    def _run_step(self, job: Job, step: Step) -> None:
        if step is None:
            self._loop.post(lambda: self._resume(job, None, None))
            return

        def run() -> tuple[Any, BaseException | None]:
            try:
                return step(), None
            except BaseException as e:
                return None, e

        self._workers.submit(run, lambda outcome: self._resume(job, *outcome))

    def _resume(self, job: Job, value: Any, error: BaseException | None) -> None:
        if job.cancelled and not job.final and not isinstance(error, JobCancelled):
            error = JobCancelled()
            job.cancelled = False  # once; what the job does to put things back is not cancelled
        if error is not None:
            failure = error
            self._advance(job, lambda: job.body.throw(failure))
        else:
            self._advance(job, lambda: job.body.send(value))

    def _finish(self, job: Job, error: QemupyError | None) -> None:
        self.current, self.stepping = None, False
        job.done(error)

    def cancel(self) -> None:
        """Ask the running job to end; it does at its next `yield`."""
        job = self.current
        if job is not None:
            job.cancelled = True
            if job.on_cancel is not None:
                job.on_cancel()

    def run_to_end(self) -> None:
        """Turn the loop until no job runs."""
        while self.current is not None:
            self._loop.iterate(50_000_000)
