"""Waiting on an epoll descriptor with nanosecond precision.

`select.epoll.poll` rounds its timeout up to whole milliseconds and so loses a tenth of 1 kHz ticks. An epoll descriptor
is itself pollable, and `ppoll` takes a timespec on every kernel (epoll_pwait2 would need Linux 5.11). It is called
through ctypes, which drops the GIL. The thread's timer slack, 50 us by default, is set to 1 ns.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_TIMERSLACK = 29


class _Timespec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


class _PollFd(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


def tighten_timer_slack() -> None:
    """For the calling thread."""
    _libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


class EpollWait:
    """`sleep(ns)` returns when the epoll descriptor has events or the time is over; None waits without limit."""

    def __init__(self, epoll: select.epoll) -> None:
        self._pollfd = _PollFd(epoll.fileno(), select.POLLIN, 0)
        self._timespec = _Timespec()
        self._ppoll = _libc.ppoll

    def sleep(self, timeout_ns: int | None) -> None:
        limit = None
        if timeout_ns is not None:
            self._timespec.sec, self._timespec.nsec = divmod(max(timeout_ns, 0), 1_000_000_000)
            limit = ctypes.byref(self._timespec)
        if self._ppoll(ctypes.byref(self._pollfd), 1, limit, None) < 0:
            error = ctypes.get_errno()
            if error != errno.EINTR:
                raise OSError(error, os.strerror(error))
