"""The handshake phase: fixed newstyle negotiation of one export (proto.md, "Newstyle negotiation").

Everything the server says is checked: it may be broken or hostile.
"""

from __future__ import annotations

import socket
import struct

from qemupy.errors import BackendError
from qemupy.records import record

_INIT_MAGIC, _OPTION_MAGIC, _OLDSTYLE_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x00420281861253
_OPTION_REPLY_MAGIC = 0x0003E889045565A9
_FIXED_NEWSTYLE, _NO_ZEROES = 1 << 0, 1 << 1
_OPT_EXPORT_NAME, _OPT_GO, _OPT_STRUCTURED_REPLY, _OPT_SET_META_CONTEXT = 1, 7, 8, 10
_REP_ACK, _REP_INFO, _REP_META_CONTEXT, _REP_ERROR = 1, 3, 4, 1 << 31
_REP_ERR_UNSUP, _REP_ERR_POLICY, _REP_ERR_TLS_REQD, _REP_ERR_UNKNOWN = (_REP_ERROR + n for n in (1, 2, 5, 6))
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_MAX_OPTION_REPLY = 1 << 16
ALLOCATION = b"base:allocation"

HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SEND_TRIM, SEND_WRITE_ZEROES = 1 << 5, 1 << 6
DEFAULT_MAX_PAYLOAD = 32 << 20


@record()
class Export:
    """What was negotiated. Sizes in bytes; `allocation` is the id of the context that tells holes, None without."""

    size: int = 0
    flags: int = 0
    min_block: int = 1
    max_payload: int = DEFAULT_MAX_PAYLOAD
    structured: bool = False
    allocation: int | None = None


def receive(sock: socket.socket, length: int) -> bytes:
    """Exactly `length` bytes; ConnectionError if the peer is gone before."""
    data = bytearray(length)
    receive_into(sock, memoryview(data))
    return bytes(data)


def receive_into(sock: socket.socket, view: memoryview) -> None:
    while view:
        count = sock.recv_into(view)
        if not count:
            raise ConnectionResetError("the server closed the connection")
        view = view[count:]


def negotiate(sock: socket.socket, name: str) -> Export:
    """Agree on the export `name`; afterwards the connection carries requests. BackendError says what is wrong."""
    try:
        return _Negotiation(sock, name).run()
    except TimeoutError:
        raise BackendError("the NBD server does not answer") from None
    except OSError as e:
        raise BackendError(f"Failed to read initial magic: {e.strerror or e}") from None


class _Negotiation:
    def __init__(self, sock: socket.socket, name: str) -> None:
        self._sock, self._name, self.export = sock, name.encode(), Export()

    def run(self) -> Export:
        magic, second = struct.unpack(">QQ", receive(self._sock, 16))
        if magic != _INIT_MAGIC:
            raise BackendError(f"Bad initial magic received: 0x{magic:016x}")
        if second == _OLDSTYLE_MAGIC:
            raise BackendError("the NBD server offers only oldstyle negotiation, which is not supported")
        if second != _OPTION_MAGIC:
            raise BackendError(f"Bad server magic received: 0x{second:016x}")
        (flags,) = struct.unpack(">H", receive(self._sock, 2))
        self._no_zeroes = bool(flags & _NO_ZEROES)
        self._sock.sendall(struct.pack(">I", flags & (_FIXED_NEWSTYLE | _NO_ZEROES)))
        if not flags & _FIXED_NEWSTYLE:
            self._by_name()
            return self.export
        self.export.structured = self._ask(_OPT_STRUCTURED_REPLY, b"") is not None
        if self.export.structured:
            self._find_allocation()
        if not self._go():
            self._by_name()
        return self.export

    # Options

    def _send(self, option: int, data: bytes) -> None:
        self._sock.sendall(struct.pack(">QII", _OPTION_MAGIC, option, len(data)) + data)

    def _reply(self, option: int) -> tuple[int, bytes]:
        magic, about, kind, length = struct.unpack(">QIII", receive(self._sock, 20))
        if magic != _OPTION_REPLY_MAGIC or about != option:
            raise BackendError(f"Unexpected option reply: magic 0x{magic:x}, option {about}, not {option}")
        if length > _MAX_OPTION_REPLY:
            raise BackendError(f"option reply of {length} bytes is too long (at most {_MAX_OPTION_REPLY})")
        return kind, receive(self._sock, length)

    def _ask(self, option: int, data: bytes) -> list[tuple[int, bytes]] | None:
        """The replies before the acknowledgement; None if the server does not know the option."""
        self._send(option, data)
        replies: list[tuple[int, bytes]] = []
        while True:
            kind, payload = self._reply(option)
            if kind == _REP_ACK:
                return replies
            if (kind in (_REP_ERR_UNSUP, _REP_ERR_POLICY) and option != _OPT_GO) or kind == _REP_ERR_UNSUP:
                return None
            if kind & _REP_ERROR:
                raise BackendError(self._error(kind, payload))
            replies.append((kind, payload))
            if len(replies) > 100:
                raise BackendError("the NBD server does not come to an end with its replies")

    def _error(self, kind: int, payload: bytes) -> str:
        said = payload.decode("utf-8", "replace")
        more = f" (server reported: {said})" if said else ""
        if kind == _REP_ERR_TLS_REQD:
            return f"Server requires TLS, which is not supported{more}"
        if kind == _REP_ERR_UNKNOWN:
            return f"Requested export not available: '{self._name.decode()}'{more}"
        return f"the NBD server refuses with error {kind & ~_REP_ERROR}{more}"

    def _find_allocation(self) -> None:
        query = struct.pack(">I", len(self._name)) + self._name + struct.pack(">II", 1, len(ALLOCATION)) + ALLOCATION
        for kind, payload in self._ask(_OPT_SET_META_CONTEXT, query) or ():
            if kind == _REP_META_CONTEXT and payload[4:] == ALLOCATION:
                (self.export.allocation,) = struct.unpack(">I", payload[:4])

    def _go(self) -> bool:
        """False if the server does not know the option."""
        wanted = struct.pack(">HH", 1, _INFO_BLOCK_SIZE)
        replies = self._ask(_OPT_GO, struct.pack(">I", len(self._name)) + self._name + wanted)
        if replies is None:
            return False
        known = False
        for kind, payload in replies:
            what = int.from_bytes(payload[:2], "big") if kind == _REP_INFO and len(payload) >= 2 else None
            if what == _INFO_EXPORT and len(payload) == 12:
                self.export.size, self.export.flags = struct.unpack(">QH", payload[2:])
                known = True
            elif what == _INFO_BLOCK_SIZE and len(payload) == 14:
                self._block_sizes(*struct.unpack(">III", payload[2:]))
        if not known:
            raise BackendError("the NBD server does not tell the size of the export")
        self._check()
        return True

    def _block_sizes(self, minimum: int, preferred: int, maximum: int) -> None:
        if minimum & (minimum - 1) or not 1 <= minimum <= 1 << 16:
            raise BackendError(f"server advertised minimum block size {minimum} that is not a power of two up to 64k")
        if maximum != 0xFFFFFFFF and maximum < max(minimum, 512):
            raise BackendError(f"server advertised maximum payload size {maximum}, smaller than a block ({minimum})")
        self.export.min_block = minimum
        self.export.max_payload = min(maximum, DEFAULT_MAX_PAYLOAD)

    def _by_name(self) -> None:
        """The oldest way: no errors, the connection just ends."""
        self._send(_OPT_EXPORT_NAME, self._name)
        try:
            self.export.size, self.export.flags = struct.unpack(">QH", receive(self._sock, 10))
            if not self._no_zeroes:
                receive(self._sock, 124)
        except ConnectionError:
            raise BackendError(f"Requested export not available: '{self._name.decode()}'") from None
        self._check()

    def _check(self) -> None:
        if self.export.size >= 1 << 63:
            raise BackendError(f"the NBD export's size {self.export.size} is beyond 2^63")
        if self.export.min_block > 1 and self.export.size % self.export.min_block:
            raise BackendError(
                f"export length {self.export.size} is not multiple of minimum block size {self.export.min_block}"
            )
