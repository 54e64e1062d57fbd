"""The websockets' addresses, for whichever server carries them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from personaplex.protocols.door import Door
from personaplex.protocols.moshi import chat
from personaplex.protocols.realtime.talk import realtime
from personaplex.protocols.twilio import media

Endpoint = Callable[[WebSocket, Door], Awaitable[None]]


def moshi_routes(door: Door) -> list[WebSocketRoute]:
    """The model's own protocol alone, as its clients expect it on a port of its own."""
    return [_route("/api/chat", chat, door), _route("/{persona}/api/chat", chat, door)]


def all_routes(door: Door) -> list[WebSocketRoute]:
    """Every protocol; `/realtime` is for clients whose base address lacks the `/v1`."""
    others = (("/v1/realtime", realtime), ("/realtime", realtime), ("/twilio/media", media))
    return [*moshi_routes(door), *(_route(path, endpoint, door) for path, endpoint in others)]


def _route(path: str, endpoint: Endpoint, door: Door) -> WebSocketRoute:
    async def answer(socket: WebSocket) -> None:
        await endpoint(socket, door)

    return WebSocketRoute(path, answer)
