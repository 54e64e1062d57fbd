"""The page's end of conversations' lines: one address, at which each worker calls with the ticket of its own call.

with Exchange("unix") as exchange, exchange.expect() as expected:
    …                                             # elsewhere: dial(expected.address, expected.ticket)
    line = expected.wait()
    kind, payload = line.receive(within_sec=3.0)
"""

from __future__ import annotations

import hmac
import logging
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from personaplex.serving.line import (
    HANDSHAKE_SEC,
    ID_BYTES,
    KEY_BYTES,
    MAGIC,
    NONCE_BYTES,
    PROOF_BYTES,
    Line,
    LineBroken,
    proof_of,
)

log = logging.getLogger(__name__)

MAX_STRANGERS = 64
"""Connections that have not proved themselves yet; more are closed at once."""


class Expected:
    """A call that was announced: its worker dials once, or never."""

    def __init__(self, address: str, forget: Callable[[bytes], None]) -> None:
        self.address = address
        self.ticket = secrets.token_bytes(ID_BYTES + KEY_BYTES)
        self._forget = forget
        self._changed = threading.Condition()
        self._line: Line | None = None
        self._is_over = False

    def __enter__(self) -> Expected:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_up()
        if self._line is not None:
            self._line.hang_up()

    def wait(self) -> Line | None:
        """Wait for the worker; None once ``give_up`` was called."""
        with self._changed:
            self._changed.wait_for(lambda: self._line is not None or self._is_over)
            return self._line

    def give_up(self, after_sec: float = 0.0) -> None:
        """Stop waiting for a worker that does not dial within ``after_sec``."""
        with self._changed:
            self._changed.wait_for(lambda: self._line is not None, after_sec)
            self._is_over = True
            self._changed.notify_all()
        self._forget(self.ticket)

    def connect(self, line: Line) -> bool:
        """Hand the worker's line over; false if nobody waits for it any more."""
        with self._changed:
            if self._is_over or self._line is not None:
                return False
            self._line = line
            self._changed.notify_all()
        return True


class Exchange:
    """Takes the workers' calls on one address, each by a ticket of its own."""

    def __init__(self, at: str) -> None:
        """``at``: ``unix`` for a socket in a private folder, ``tcp:HOST:PORT``, where port 0 takes any free one."""
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()
        self._expected: dict[bytes, Expected] = {}
        self._strangers = threading.BoundedSemaphore(MAX_STRANGERS)
        if at == "unix":
            self._folder = tempfile.TemporaryDirectory(prefix="personaplex-")
            path = str(Path(self._folder.name) / "line")
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.bind(path)
            self._socket.listen()
            self.address = f"unix:{path}"
        else:
            host, _, port = at.removeprefix("tcp:").rpartition(":")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, int(port)), family=family)
            self.address = f"tcp:{host}:{self._socket.getsockname()[1]}"
        self._is_closed = False
        threading.Thread(target=self._accept, name="exchange", daemon=True).start()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def expect(self) -> Expected:
        """Announce a call."""
        expected = Expected(self.address, self._forget)
        with self._lock:
            self._expected[expected.ticket[:ID_BYTES]] = expected
        return expected

    def close(self) -> None:
        """Take no calls any more; lines that are connected stay."""
        self._is_closed = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        except OSError:
            log.debug("the exchange is closed already")
        self._socket.close()
        with self._lock:
            waiting = list(self._expected.values())
        for expected in waiting:
            expected.give_up()
        if self._folder is not None:
            self._folder.cleanup()

    def _forget(self, ticket: bytes) -> None:
        with self._lock:
            self._expected.pop(ticket[:ID_BYTES], None)

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                connected, _ = self._socket.accept()
            except OSError as error:
                if self._is_closed:
                    return
                log.warning("a call could not be taken: %s", error)  # as when the process has too many open files
                time.sleep(0.1)
                continue
            if not self._strangers.acquire(blocking=False):
                log.warning("more than %d connections have not proved themselves; one is closed", MAX_STRANGERS)
                connected.close()
                continue
            threading.Thread(target=self._admit, args=[connected], name="exchange-caller", daemon=True).start()

    def _admit(self, connected: socket.socket) -> None:
        line = Line(connected)
        try:
            expected = self._proven(line)
            if not expected.connect(line):
                raise LineBroken("nobody waits for this call any more")
            self._forget(expected.ticket)
        except OSError as error:
            log.warning("a connection to the exchange was closed: %s", error)
            line.close()
        finally:
            self._strangers.release()

    def _proven(self, line: Line) -> Expected:
        """The call that a worker knows the ticket of; raises OSError for anybody else."""
        hello = line.receive_raw(len(MAGIC) + ID_BYTES + NONCE_BYTES, HANDSHAKE_SEC)
        magic, hello = hello[: len(MAGIC)], hello[len(MAGIC) :]
        identity, theirs = hello[:ID_BYTES], hello[ID_BYTES:]
        with self._lock:
            expected = self._expected.get(identity)
        if magic != MAGIC or expected is None:
            raise LineBroken("it speaks another protocol" if magic != MAGIC else "its call is not expected")
        key, ours = expected.ticket[ID_BYTES:], secrets.token_bytes(NONCE_BYTES)
        line.send_raw(ours + proof_of(key, b"page", theirs + ours), HANDSHAKE_SEC)
        proof = line.receive_raw(PROOF_BYTES, HANDSHAKE_SEC)
        if not hmac.compare_digest(proof, proof_of(key, b"worker", theirs + ours)):
            raise LineBroken("it does not know the key of its call")
        return expected
