"""Who may ask for what: the names the page answers to, the routes that are closed, errors as a sentence."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from personaplex.settings import Settings
from personaplex.web.address import is_loopback
from personaplex.web.listeners import Listeners, stream_of
from personaplex.web.log_format import place_of
from personaplex.web.workarounds.front_end import CONTENT_SECURITY_POLICY

log = logging.getLogger(__name__)

LOOPBACK_NAMES = ("localhost", "*.localhost")
SHARE_NAMES = ("*.gradio.live",)
CLOSED = (
    "/api", "/deep_link", "/dev/", "/login", "/logout", "/monitoring", "/openapi.json", "/process_recording",
    "/proxy=", "/run", "/stream/", "/token", "/vibe", "/file=http", "/file/http",
)  # fmt: skip
"""Beginnings of Gradio's routes that the page does not use; the last two redirect to any address."""
MAX_BODY_BYTES = 1_000_000
"""Limit of a request other than an upload. A page sends a few thousand bytes; parsing JSON takes thirty times its
size in memory and blocks the event loop meanwhile."""
TOO_LARGE = f"This request is too large; at most {MAX_BODY_BYTES} bytes are read."


def host_names(settings: Settings, environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The names the page answers to, as patterns: this machine's, the share's, the Space's, those of the setting."""
    environ = os.environ if environ is None else environ
    names = [*LOOPBACK_NAMES, socket.gethostname(), socket.getfqdn(), *settings.allowed_hosts.split(",")]
    if settings.host:
        names.append(settings.host)
    if settings.share:
        names += SHARE_NAMES
    names += [name for name in map(environ.get, ("SPACE_HOST", "GRADIO_SERVER_NAME")) if name]
    return tuple(name.strip().lower() for name in names if name.strip())


def is_allowed(host: str, names: Iterable[str]) -> bool:
    """Whether a ``Host`` header names this page. An IP address does: DNS rebinding needs a name.

    Not ``0.0.0.0`` and ``[::ffff:127.0.0.1]``, unless they are listed: they lead here too, and to them browsers send no
    ``Sec-Fetch-Site``.
    """
    name = _without_port(host).rstrip(".")
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        address = None
    if address is not None and not address.is_unspecified and getattr(address, "ipv4_mapped", None) is None:
        return True
    return any(fnmatch(name, pattern) for pattern in names)


def is_from_elsewhere(headers: Headers, method: str) -> bool:
    """Whether a web page of another site asks for something of this machine's own page, other than to open it.

    Gradio's rule for such pages knows ``localhost`` and ``127.0.0.1`` only, not ``a.localhost``; and a form or an
    upload reaches the server whatever the rule says. Browsers send ``Sec-Fetch-Site`` to every loopback name.
    """
    is_opened = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
    is_cross_site = headers.get("sec-fetch-site") == "cross-site"
    return is_cross_site and not is_opened and is_loopback(_without_port(headers.get("host", "")))


def _without_port(host: str) -> str:
    name = host.rsplit(":", 1)[0] if host.count(":") == 1 or "]" in host else host
    return name.strip("[]").lower()


def _bounded(receive: Receive) -> Receive:
    """``receive`` that raises HTTPException, status 413, for a body of more than MAX_BODY_BYTES."""
    received = 0

    async def receive_bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise HTTPException(413, TOO_LARGE)
        return message

    return receive_bounded


class Access:
    """ASGI middleware in front of Gradio's routes.

    ``names``: the host patterns the page answers to; ``listeners``: told which event streams are open; ``sockets``: the
    websockets that are let through, which look at key and origin themselves. The page uses none.
    """

    def __init__(
        self, app: ASGIApp, names: tuple[str, ...], listeners: Listeners, sockets: Sequence[BaseRoute] = ()
    ) -> None:
        self._app, self._names, self._listeners, self._sockets = app, names, listeners, sockets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._app(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if not is_allowed(headers.get("host", ""), self._names):
            return _refused(421, "This page does not answer to that name; its operator may allow it (--allowed-hosts).")
        if scope["type"] == "websocket":
            is_known = any(route.matches(scope)[0] is Match.FULL for route in self._sockets)
            return None if is_known else _refused(404, "There is nothing here.")
        if is_from_elsewhere(headers, scope.get("method", "")):
            return _refused(403, "A web page of another site may not use this page.")
        declared = headers.get("content-length", "")
        if not _is_upload(scope) and declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
            return _refused(413, TOO_LARGE)
        return _refused(404, "There is nothing here.") if _route(scope).lower().startswith(CLOSED) else None

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        if not _is_upload(scope):
            receive = _bounded(receive)

        async def send_on(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
                if headers.get("content-type", "").startswith("text/event-stream"):
                    headers["X-Accel-Buffering"] = "no"  # nginx would hold events back until its buffer is full
            await send(message)

        try:
            with self._listeners.listening(stream_of(scope)):
                await self._app(scope, receive, send_on)
        except ClientDisconnect:
            log.info("a client hung up in the middle of its request")
        except Exception as error:
            log.warning("a request failed: %s at %s", type(error).__name__, place_of(error))
            if not started:
                await _refused(500, "The server could not work with this request.")(scope, receive, send_on)


def _route(scope: Scope) -> str:
    return scope["path"].removeprefix(scope.get("root_path", "")).removeprefix("/gradio_api")


def _is_upload(scope: Scope) -> bool:
    """Its files are bounded one by one, by Gradio's parser."""
    return _route(scope) == "/upload"


def _refused(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"detail": sentence}, status)
