"""The page's address: where it listens, and from where and by which name it is reached."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from personaplex.errors import ConfigError
from personaplex.settings import Settings

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

LOOPBACK = "127.0.0.1"
_IPV6_PREFIX = 64  # what one customer of a provider has


def check_address(settings: Settings) -> None:
    """Raises ConfigError for an unusable certificate or an address that cannot be listened on.

    Gradio would try other ports for minutes and not say why.
    """
    if settings.ssl_cert is not None:
        pair = f"{settings.ssl_cert} and {settings.ssl_key}"
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.ssl_cert, settings.ssl_key)
        except OSError as error:  # missing, or not a certificate
            raise ConfigError(f"{pair} cannot be used as a certificate and its key: {error}") from error
    if settings.moshi_port is not None:
        if settings.moshi_port == settings.port:
            raise ConfigError(f"port and moshi_port are both {settings.port}; the page carries /api/chat as it is")
        _check_free(settings.host or LOOPBACK, settings.moshi_port, "--moshi-port")
    if settings.host is not None or settings.port is not None:
        _check_free(settings.host or LOOPBACK, settings.port or 0, "--port")


def _check_free(host: str, port: int, flag: str) -> None:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, os.name == "posix")
            tried.bind(address)
    except OSError as error:
        where = f"{host}, port {port}" if port else host
        raise ConfigError(f"the page cannot listen on {where}: {error}; choose another --host or {flag}") from error


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own: ``localhost``, ``127.0.0.1``, ``[::1]``."""
    name = host.strip().strip("[]").rstrip(".").lower()
    address = _address(name)
    return name == "localhost" or name.endswith(".localhost") or (address is not None and address.is_loopback)


def listening_host(settings: Settings, environ: Mapping[str, str] | None = None) -> str:
    """Where the page listens. Without ``--host`` Gradio takes GRADIO_SERVER_NAME, which Spaces set."""
    environ = os.environ if environ is None else environ
    return settings.host or environ.get("GRADIO_SERVER_NAME") or LOOPBACK


def listens_locally(settings: Settings, environ: Mapping[str, str] | None = None) -> bool:
    """Whether only this machine can reach the page, unless a proxy or a tunnel leads to it."""
    return not settings.share and is_loopback(listening_host(settings, environ))


def is_elsewhere(request: HTTPConnection | None) -> bool:
    """Whether a visitor's browser is on another machine: a proxy or a tunnel leads to a page that listens locally.

    A proxy may pass its own address as Host (nginx does unless told otherwise); the browser's Origin stays as it is.
    An ssh tunnel to localhost cannot be told from a local browser.
    """
    if request is None:
        return False
    named = [request.headers.get(name, "") for name in ("host", "x-forwarded-host")]
    hosts = [_host_of(f"//{each.strip()}") for each in ",".join(named).split(",")]
    hosts += [_host_of(request.headers.get("origin", "")), visitor_address(request)]
    return any(host and not is_loopback(host) for host in hosts)


def visitor_address(request: HTTPConnection | None) -> str:
    """The visitor's address, as far as it can be known; IPv6 addresses by their /64 network.

    Behind a proxy in a private network, as on Spaces, it is the nearest public address of X-Forwarded-For.
    """
    peer = request.client.host if request is not None and request.client else ""
    direct = _address(peer)
    if request is not None and (direct is None or not direct.is_global):
        hops = request.headers.get("x-forwarded-for", "").split(",")
        public = (hop.strip() for hop in reversed(hops) if (found := _address(hop.strip())) and found.is_global)
        peer = next(public, peer)
    found = _address(peer)
    if isinstance(found, ipaddress.IPv6Address) and found.is_global:
        return str(ipaddress.ip_network((found, _IPV6_PREFIX), strict=False).network_address)
    return peer


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # such as an unclosed bracket
        return ""


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
