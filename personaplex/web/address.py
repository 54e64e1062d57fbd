"""Checks address and certificate before Gradio starts, which would retry for minutes and not say what is wrong."""

from __future__ import annotations

import os
import socket
import ssl

from personaplex.errors import ConfigError
from personaplex.settings import Settings
from personaplex.web.webrtc import LOOPBACK


def check_address(settings: Settings) -> None:
    """Raises ConfigError for a certificate that cannot be used, or an address on which nothing can listen."""
    if settings.ssl_cert is not None:
        pair = f"{settings.ssl_cert} and {settings.ssl_key}"
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.ssl_cert, settings.ssl_key)
        except OSError as error:  # missing, or not a certificate
            raise ConfigError(f"{pair} cannot be used as a certificate and its key: {error}") from error
    if settings.host is None and settings.port is None:
        return
    host, port = settings.host or LOOPBACK[0], settings.port or 0
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, os.name == "posix")
            tried.bind(address)
    except OSError as error:
        where = f"{host}, port {port}" if port else host
        raise ConfigError(f"the page cannot listen on {where}: {error}; choose another --host or --port") from error
