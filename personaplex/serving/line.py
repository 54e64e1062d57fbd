"""A conversation's line: an authenticated stream of short messages between the page and the worker that holds it.

The page listens (``exchange.Exchange``), on a unix socket or on TCP; the worker dials with a ticket that the page made
for this one call.

    with dial(address, ticket) as line:
        line.send(Kind.BEAT, within_sec=1.0)
        kind, payload = line.receive(within_sec=3.0)

Both ends prove that they know the ticket's key, by HMAC over two random numbers; nothing is unpickled. What is said is
not encrypted: TCP is for private networks.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import select
import socket
import threading
import time
from types import TracebackType

from personaplex.serving.layout import HEADER, MAX_PAYLOAD_BYTES

log = logging.getLogger(__name__)

MAGIC = b"PPX1"
"""Protocol and version; a worker of another one is not answered."""
ID_BYTES, KEY_BYTES, NONCE_BYTES, PROOF_BYTES = 16, 32, 32, 32
HANDSHAKE_SEC = 5.0
REST_SEC = 5.0
"""A message that has begun must be complete within this time."""
SEND_BUFFER_BYTES = 2**20


class LineBroken(OSError):
    """The other end hung up, did not prove itself, sent something that is not a message, or reads no more."""


class Line:
    """A connected line. One thread receives; any may send and ``hang_up``; whoever made it closes it."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if connected.family != getattr(socket, "AF_UNIX", None):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connected
        self._sending = threading.Lock()

    def __enter__(self) -> Line:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, kind: int, payload: bytes = b"", *, within_sec: float) -> None:
        """Send a message; LineBroken if the other end's buffers stay full for ``within_sec``: the line is lost then."""
        with self._sending:
            self.send_raw(HEADER.pack(kind, len(payload)) + payload, within_sec)

    def receive(self, *, within_sec: float | None) -> tuple[int, bytes]:
        """The next message's kind and payload; TimeoutError if none begins within ``within_sec`` (None: wait)."""
        kind, size = HEADER.unpack(self.receive_raw(HEADER.size, within_sec))
        if size > MAX_PAYLOAD_BYTES:
            raise LineBroken(f"a message of {size} bytes was announced; {MAX_PAYLOAD_BYTES} are allowed")
        try:
            return kind, self.receive_raw(size, REST_SEC)
        except TimeoutError as error:
            raise LineBroken("a message broke off") from error

    def hang_up(self) -> None:
        """Both ends stop waiting; from any thread."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            log.debug("the line is closed already")

    def close(self) -> None:
        self.hang_up()
        self._socket.close()

    def send_raw(self, data: bytes, within_sec: float) -> None:
        until, rest = time.monotonic() + within_sec, memoryview(data)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except BlockingIOError:
                try:
                    self._wait(select.POLLOUT, until)
                except TimeoutError as error:
                    self.hang_up()  # a part may have been sent
                    raise LineBroken(f"the other end has read nothing for {within_sec:.1f} s") from error

    def receive_raw(self, size: int, within_sec: float | None) -> bytes:
        """Exactly ``size`` bytes. TimeoutError if none came in time, LineBroken if some did."""
        data, filled = bytearray(size), 0
        until = None if within_sec is None else time.monotonic() + within_sec
        while filled < size:
            try:
                count = self._socket.recv_into(memoryview(data)[filled:])
            except BlockingIOError:
                try:
                    self._wait(select.POLLIN, until)
                except TimeoutError as error:
                    if filled:
                        raise LineBroken("a message broke off") from error
                    raise
                continue
            if not count:
                raise LineBroken("the other end hung up")
            if not filled:
                until = time.monotonic() + REST_SEC
            filled += count
        return bytes(data)

    def _wait(self, event: int, until: float | None) -> None:
        if self._socket.fileno() < 0:
            raise LineBroken("the line is closed")
        poll = select.poll()
        poll.register(self._socket, event)
        left_ms = None if until is None else max(0.0, (until - time.monotonic()) * 1000)
        if not poll.poll(left_ms):
            raise TimeoutError("nothing came in time")


def dial(address: str, ticket: bytes, within_sec: float = HANDSHAKE_SEC) -> Line:
    """Connect to an exchange's ``address`` (``unix:PATH`` or ``tcp:HOST:PORT``) with a ticket it made.

    Raises LineBroken if the exchange does not know it any more, OSError if nobody listens there.
    """
    identity, key = ticket[:ID_BYTES], ticket[ID_BYTES:]
    line = Line(_connected(address, within_sec))
    try:
        ours = secrets.token_bytes(NONCE_BYTES)
        line.send_raw(MAGIC + identity + ours, within_sec)
        answer = line.receive_raw(NONCE_BYTES + PROOF_BYTES, within_sec)
        theirs, proof = answer[:NONCE_BYTES], answer[NONCE_BYTES:]
        if not hmac.compare_digest(proof, proof_of(key, b"page", ours + theirs)):
            raise LineBroken(f"who listens at {address} does not know this call")
        line.send_raw(proof_of(key, b"worker", ours + theirs), within_sec)
    except OSError:
        line.close()
        raise
    return line


def _connected(address: str, within_sec: float) -> socket.socket:
    kind, _, where = address.partition(":")
    if kind == "tcp":
        host, _, port = where.rpartition(":")
        return socket.create_connection((host, int(port)), within_sec)
    if kind != "unix":
        raise ValueError(f"a line's address is {address!r}; unix:PATH and tcp:HOST:PORT are allowed")
    connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connecting.settimeout(within_sec)
        connecting.connect(where)
    except OSError:
        connecting.close()
        raise
    return connecting


def proof_of(key: bytes, who: bytes, nonces: bytes) -> bytes:
    """That ``who`` ("page" or "worker") knows the key, for these two random numbers alone."""
    return hmac.digest(key, who + nonces, "sha256")
