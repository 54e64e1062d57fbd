"""Who may open a websocket: the key, the origin, how many, and whether there is a model to talk to."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac
import logging
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket

from personaplex.protocols.asked import Model
from personaplex.settings import Settings
from personaplex.words.hearing import Recognition

log = logging.getLogger(__name__)

SUBPROTOCOL = "realtime"
KEY_SUBPROTOCOL = "openai-insecure-api-key."
"""A browser cannot send headers, so OpenAI's clients there send the key as a subprotocol."""
SPARE_CONNECTIONS = 16
"""Websockets that may be open without a conversation asked for, besides those that talk or wait in the queue."""
RETRY_AFTER_SEC = 5


class Door:
    """Lets websockets in, or refuses them with an HTTP status: a client that is accepted and closed comes again."""

    def __init__(
        self, settings: Settings, model: Callable[[], Model | None], *, loading: Callable[[], str] = lambda: "",
        is_lent: Callable[[], bool] = lambda: False, recognition: Recognition | None = None,
    ) -> None:  # fmt: skip
        """``model``: None while it loads, of which ``loading`` tells; ``is_lent``: a GPU is lent for each talk."""
        self._key = settings.api_key
        self._origins = {origin.strip().rstrip("/").lower() for origin in settings.allowed_origins.split(",")} - {""}
        self._most = settings.most_at_once + settings.waiting + SPARE_CONNECTIONS
        self._model, self._loading, self._is_lent = model, loading, is_lent
        self.recognition = recognition
        """Writes down what users say, for clients that ask for it; None where nothing can."""
        self.connections = 0
        """Websockets that are open."""

    async def admit(self, socket: WebSocket, *, key_comes_later: bool = False) -> Model | None:
        """The model to talk to, with the websocket still to be accepted; None where it was refused."""
        refusal = self._refusal(socket.headers, key_comes_later)
        if refusal is None:
            model = self._model()
            if model is not None:
                return model
            refusal = 503, self._loading() or "The model is loading."
        await refuse(socket, *refusal)
        return None

    def is_key(self, given: str) -> bool:
        """Whether a client's key opens this door; every one does where none is set."""
        return not self._key or hmac.compare_digest(given.encode(), self._key.encode())

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """For as long as a websocket is open."""
        self.connections += 1
        try:
            yield
        finally:
            self.connections -= 1

    def _refusal(self, headers: Headers, key_comes_later: bool) -> tuple[int, str] | None:
        has_key = bool(self._key) and self.is_key(key_of(headers))
        if not (has_key or self._is_welcome(headers)):
            return 403, "A web page of this origin may not talk here; its operator may allow it (--allowed-origins)."
        if self._key and not has_key and not key_comes_later:
            return 401, "The API key is missing or wrong."
        if self._is_lent() and not self._key:
            return 503, "Here a GPU is lent to visitors of the page only."
        if self.connections >= self._most:
            return 503, "Too many connections are open. Please try again in a few minutes."
        return None

    def _is_welcome(self, headers: Headers) -> bool:
        """A program sends no origin. A web page's is welcome if its name is the one asked for here, or if it is listed.

        Browsers let every web page open websockets to everywhere, to this machine too.
        """
        origin = headers.get("origin", "").rstrip("/").lower()
        if not origin or origin in self._origins:
            return True
        own = _name_of("//" + headers.get("host", ""))
        return bool(own) and _name_of(origin) == own


async def refuse(socket: WebSocket, status: int, sentence: str) -> None:
    """Answer the handshake with an HTTP error, in the shape of OpenAI's."""
    log.info("a websocket was refused with status %d", status)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = {"error": {"type": kind, "code": None, "message": sentence, "param": None}}
    headers = {"Retry-After": str(RETRY_AFTER_SEC)} if status == 503 else None
    await socket.send_denial_response(JSONResponse(body, status, headers))


def key_of(headers: Headers) -> str:
    """The key as a bearer's, as a password (`ws://any:KEY@host`), or among the subprotocols; "" for none."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return given.strip()
    if kind.lower() == "basic":
        with contextlib.suppress(binascii.Error, ValueError):
            return base64.b64decode(given, validate=True).decode().partition(":")[2]
        return ""
    offered = (name.strip() for name in headers.get("sec-websocket-protocol", "").split(","))
    return next((name.removeprefix(KEY_SUBPROTOCOL) for name in offered if name.startswith(KEY_SUBPROTOCOL)), "")


def subprotocol_of(socket: WebSocket) -> str | None:
    """The one to be accepted, if the client offered any that is known."""
    return SUBPROTOCOL if SUBPROTOCOL in socket.scope.get("subprotocols", []) else None


def _name_of(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:  # such as an unclosed bracket
        return ""
