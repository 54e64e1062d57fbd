"""Websockets on a port of their own, beside the page, and the limits of every server that carries them."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from personaplex.errors import ConfigError
from personaplex.protocols.talk import MAX_MESSAGE_BYTES

START_WITHIN_SEC = 10.0
CLOSE_WITHIN_SEC = 2.0


def limit_websockets(config: uvicorn.Config) -> None:
    """Bound messages before they are read, and leave sound uncompressed; counts for connections made from now on."""
    config.ws_max_size = MAX_MESSAGE_BYTES
    config.ws_per_message_deflate = False
    logging.getLogger("uvicorn.error").addFilter(_is_worth_a_line)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """uvicorn (0.54) logs an error for each handshake that was refused with an HTTP status."""
    return record.getMessage() != "ASGI callable returned without completing handshake."


class Port:
    """A server of its own thread. `close` it before the process ends."""

    def __init__(self, app: ASGIApp, host: str, port: int, ssl_cert: Path | None, ssl_key: Path | None) -> None:
        config = uvicorn.Config(
            app, host=host, port=port, log_level="warning", lifespan="off",
            ssl_certfile=ssl_cert, ssl_keyfile=ssl_key and str(ssl_key), timeout_graceful_shutdown=1,
        )  # fmt: skip
        limit_websockets(config)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name=f"port-{port}", daemon=True)
        self._address = f"{host}, port {port}"

    def start(self) -> None:
        """Listen; raises ConfigError where that does not work."""
        self._thread.start()
        until = time.monotonic() + START_WITHIN_SEC
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > until:
                raise ConfigError(f"clients cannot be served at {self._address}; choose another --moshi-port")
            time.sleep(0.01)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(CLOSE_WITHIN_SEC)
