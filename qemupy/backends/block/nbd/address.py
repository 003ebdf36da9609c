"""Where an NBD server is: from URIs, QEMU's older `nbd:` names, and options."""

from __future__ import annotations

import os
import socket
from urllib.parse import parse_qs, unquote, urlsplit

from qemupy.errors import BackendError
from qemupy.records import record

DEFAULT_PORT = "10809"


@record(frozen=True)
class Address:
    """`path` for a Unix socket, else `host` and `port`."""

    path: str = ""
    host: str = ""
    port: str = DEFAULT_PORT

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"

    def uri(self, export: str) -> str:
        """As QEMU shows it."""
        if self.path:
            return f"nbd+unix:///{export}?socket={self.path}" if export else f"nbd+unix://?socket={self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"nbd://{host}:{self.port}/{export}" if export else f"nbd://{host}:{self.port}"

    def connect(self, timeout: float) -> socket.socket:
        """BackendError in QEMU's words when nobody answers within `timeout` seconds."""
        try:
            if self.path:
                sock = socket.socket(socket.AF_UNIX)
                sock.settimeout(timeout)
                sock.connect(self.path)
            else:
                sock = socket.create_connection((self.host, self.port), timeout)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except socket.gaierror as e:
            raise BackendError(f"address resolution failed for {self}: {e.strerror}") from None
        except TimeoutError:
            raise BackendError(f"Failed to connect to '{self}': Connection timed out") from None
        except (OSError, OverflowError) as e:
            reason = os.strerror(e.errno) if isinstance(e, OSError) and e.errno else str(e)
            raise BackendError(f"Failed to connect to '{self}': {reason}") from None
        return sock


def parse_filename(filename: str) -> dict[str, str]:
    """The driver's options for `nbd:HOST:PORT`, `nbd:unix:PATH` (both with `:exportname=NAME`), `nbd://`, `nbd+tcp://`,
    `nbd+unix:///NAME?socket=PATH`."""
    if "://" in filename.split("?")[0]:
        return _parse_uri(filename)
    text, _, export = filename.removeprefix("nbd:").partition(":exportname=")
    found = {"export": export} if export else {}
    if text.startswith("unix:"):
        return {"server.type": "unix", "server.path": text.removeprefix("unix:"), **found}
    host, colon, port = text.rpartition(":")
    if not colon or not port:
        raise BackendError(f"error parsing address '{text}'")
    return {"server.type": "inet", "server.host": host.strip("[]"), "server.port": port, **found}


def _parse_uri(uri: str) -> dict[str, str]:
    parts = urlsplit(uri)
    export = unquote(parts.path).removeprefix("/")
    found = {"export": export} if export else {}
    query = parse_qs(parts.query)
    if parts.scheme == "nbd+unix":
        if parts.netloc or len(query.get("socket", ())) != 1 or set(query) != {"socket"}:
            raise BackendError("No valid URL specified")
        return {"server.type": "unix", "server.path": query["socket"][0], **found}
    if query or not parts.hostname:
        raise BackendError("No valid URL specified")
    try:
        port = str(parts.port or DEFAULT_PORT)
    except ValueError:
        raise BackendError("No valid URL specified") from None
    return {"server.type": "inet", "server.host": parts.hostname, "server.port": port, **found}
