"""Chardevs from QEMU's options: `-chardev BACKEND,id=ID,...` and the short form of `-serial` and `-monitor`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from qemupy import options
from qemupy.backends.chardev.base import Chardev, NullChardev
from qemupy.backends.chardev.mux import Mux
from qemupy.backends.chardev.ringbuf import RingbufChardev
from qemupy.errors import BackendError, ConfigError
from qemupy.main_loop.loop import MainLoop

_COMMON = ("backend", "id", "mux")
_SOCKET = ("path", "host", "port", "fd", "server", "wait", "telnet", "nodelay", "delay", "reconnect")
KNOWN_KEYS = {
    "null": (),
    "stdio": ("signal",),
    "file": ("path", "append"),
    "pipe": ("path",),
    "pty": ("path",),
    "serial": ("path",),
    "ringbuf": ("size",),
    "socket": _SOCKET,
}
SWITCHES = ("server", "wait", "telnet", "nodelay", "delay", "mux", "signal", "append")
_ALIASES = {"memory": "ringbuf", "tty": "serial", "vc": "null"}


class Frontend(Protocol):
    """Whoever takes input: a chardev with its user, or the terminal's own monitor."""

    held: bool  # it waits

    def accept_input(self) -> None:
        """Take what has come while it was held."""


class Chardevs:
    """All chardevs of a machine by id, in the order of their making."""

    def __init__(self, loop: MainLoop) -> None:
        self._loop = loop
        self.backends: dict[str, Chardev] = {}
        self.muxes: dict[str, Mux] = {}
        self.on_quit: Callable[[], None] | None = None
        self._devices: list[Frontend] = []
        self._monitors: list[Frontend] = []

    def add(self, text: str) -> str:
        """`-chardev`; answers the id."""
        given = options.parse(text, "backend", SWITCHES)
        label = given.get("id", "")
        if not label:
            raise ConfigError("chardev: no id specified")
        if label in self.backends or label in self.muxes:
            raise ConfigError(f"Duplicate ID '{label}' for chardev")
        self._enter(label, given)
        return label

    def add_short(self, text: str, label: str) -> str:
        """The short form; answers the id, which is an existing one for `chardev:ID`."""
        if text.startswith("chardev:"):
            self.frontend_check(text[8:])
            return text[8:]
        self._enter(label, parse_short(text))
        return label

    def _enter(self, label: str, given: dict[str, str]) -> None:
        kind = _ALIASES.get(given.get("backend", ""), given.get("backend", ""))
        if kind not in KNOWN_KEYS:
            hint = options.did_you_mean(kind, KNOWN_KEYS)
            raise ConfigError(f"'{kind}' is not a valid char driver name{hint}")
        options.refuse_unknown(given, (*_COMMON, *KNOWN_KEYS[kind]))
        backend = self._make(kind, label, given)
        self.backends[label] = backend
        if _flag(given, "mux", False):
            mux = Mux(backend, self._loop.realtime.now)
            mux.quit = self._quit
            self.muxes[label] = mux
        start = getattr(backend, "start", None)
        if start is not None:
            start()

    def _quit(self) -> None:
        if self.on_quit is not None:
            self.on_quit()

    def _make(self, kind: str, label: str, given: dict[str, str]) -> Chardev:
        if kind == "null":
            return NullChardev(label)
        if kind == "ringbuf":
            return RingbufChardev(label, options.size("size", given.get("size", "65536")))
        if kind == "socket":
            return self._make_socket(label, given)
        from qemupy.backends.chardev import stream

        if kind == "stdio":
            return stream.StdioChardev(self._loop, label, _flag(given, "signal", True))
        if kind == "pty":
            pty = stream.PtyChardev(self._loop, label)
            print(f"char device redirected to {pty.path} (label {label})", flush=True)
            return pty
        path = given.get("path")
        if path is None:
            raise ConfigError(f"chardev: {kind}: no {'filename' if kind == 'file' else 'device path'} given")
        if kind == "file":
            return stream.open_file(self._loop, label, path, _flag(given, "append", False))
        return (stream.open_pipe if kind == "pipe" else stream.open_device)(self._loop, label, path)

    def _make_socket(self, label: str, given: dict[str, str]) -> Chardev:
        from qemupy.backends.chardev.sockets import Address, SocketChardev

        if not given.keys() & {"path", "fd", "host", "port"}:
            raise ConfigError("chardev: socket: one of path, host and port, or fd is needed")
        server = _flag(given, "server", False)
        if "wait" in given and not server:
            raise ConfigError("'wait' option is incompatible with socket in client connect mode")
        fd = options.number("fd", given["fd"], high=1 << 20) if "fd" in given else -1
        address = Address(given.get("host", ""), given.get("port", ""), given.get("path", ""), fd)
        return SocketChardev(
            self._loop,
            label,
            address,
            server=server,
            wait=_flag(given, "wait", True),
            telnet=_flag(given, "telnet", False),
            nodelay=_flag(given, "nodelay", not _flag(given, "delay", True)),
            reconnect=options.number("reconnect", given.get("reconnect", "0"), high=1 << 20),
        )

    def frontend_check(self, label: str) -> None:
        if label not in self.backends:
            raise ConfigError(f"Chardev '{label}' not found{options.did_you_mean(label, self.backends)}")

    def frontend(self, label: str, *, monitor: bool = False) -> Chardev:
        """The chardev for one more user, a device or a `monitor`: a mux has many, any other kind one."""
        self.frontend_check(label)
        made = self.backends[label]
        if label in self.muxes:
            made = self.muxes[label].frontend()
        elif made.taken:
            raise BackendError(f"Device '{label}' is in use")
        made.taken = True
        (self._monitors if monitor else self._devices).append(made)
        return made

    def add_monitor(self, monitor: Frontend) -> None:
        """One that is on no chardev."""
        self._monitors.append(monitor)

    def hold_input(self, *, monitors: bool) -> None:
        """What is typed waits until `release_input`: devices, and with `monitors` those too, would take it in a machine
        that is about to be replaced by a saved one."""
        for frontend in (*self._devices, *(self._monitors if monitors else ())):
            frontend.held = True

    def release_input(self) -> None:
        for frontend in (*self._devices, *self._monitors):
            if frontend.held:
                frontend.held = False
                frontend.accept_input()

    def describe(self) -> list[str]:
        lines = []
        for label, backend in self.backends.items():
            if label in self.muxes:
                lines.append(f"{label}: filename=mux")
            lines.append(backend.describe())
        return lines

    def close(self) -> None:
        for backend in self.backends.values():
            backend.close()


def _flag(given: dict[str, str], key: str, default: bool) -> bool:
    return options.boolean(key, given[key]) if key in given else default


def parse_short(text: str) -> dict[str, str]:
    """`stdio`, `mon:stdio`, `file:PATH`, `tcp:HOST:PORT,server,nowait`, `unix:PATH,server=on`, `pty`, ..."""
    if text.startswith("mon:"):
        given = parse_short(text[4:])
        if given["backend"] == "stdio":
            given["signal"] = "off"
        return {**given, "mux": "on"}
    kind, colon, rest = text.partition(":")
    if text in ("null", "stdio", "pty", "vc", "ringbuf", "memory"):
        return {"backend": text}
    if text.startswith("vc:"):
        return {"backend": "null"}
    if colon and kind in ("file", "pipe"):
        return {"backend": kind, "path": rest}
    if colon and kind in ("tcp", "telnet"):
        place, _, extra = rest.partition(",")
        host, colon2, port = place.rpartition(":")
        if not colon2 or not port:
            raise ConfigError(f"'{text}': host and port are needed, as {kind}:HOST:PORT")
        given = options.parse(extra, "", SWITCHES) if extra else {}
        telnet = {"telnet": "on"} if kind == "telnet" else {}
        return {"backend": "socket", "host": host.strip("[]"), "port": port, **telnet, **given}
    if colon and kind == "unix":
        place, _, extra = rest.partition(",")
        return {"backend": "socket", "path": place, **(options.parse(extra, "", SWITCHES) if extra else {})}
    if text.startswith("/dev/"):
        return {"backend": "serial", "path": text}
    raise ConfigError(f"'{text}' is not a valid char driver")
