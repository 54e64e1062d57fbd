"""The path between browser and server (ICE, STUN, TURN), and its quality as RTCP reports it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from personaplex.errors import ConfigError
from personaplex.settings import Settings
from personaplex.web.address import listens_locally

if TYPE_CHECKING:
    from aiortc import RTCPeerConnection

log = logging.getLogger(__name__)

STUN_ONLY: dict[str, Any] = {"iceServers": [{"urls": "stun:stun.l.google.com:19302"}]}
NO_SERVERS: dict[str, Any] = {"iceServers": []}
TURN_WITHIN_SEC = 5.0
TURN_TTL_SEC = 3600
TURN_AGAIN_SEC = 60.0
"""After a failed fetch of credentials: an offline machine would delay every start by TURN_WITHIN_SEC."""

TRACK_CONSTRAINTS = {
    # Plain wishes: with {"exact": True} some browsers give no microphone at all. Automatic gain lifts a quiet
    # room's noise until the model takes it for speech and stops talking.
    "echoCancellation": True,
    "noiseSuppression": True,
    "autoGainControl": False,
    "channelCount": 1,
}

_EXAMPLE = 'such as \'[{"urls": "turn:turn.example.org:3478", "username": "me", "credential": "secret"}]\''

FetchTurn = Callable[[], Awaitable[dict[str, Any]]]


def has_turn_credentials(environ: Mapping[str, str] | None = None) -> bool:
    environ = os.environ if environ is None else environ
    return bool(
        environ.get("HF_TOKEN")
        or (environ.get("CLOUDFLARE_TURN_KEY_ID") and environ.get("CLOUDFLARE_TURN_KEY_API_TOKEN"))
    )


async def cloudflare_turn() -> dict[str, Any]:
    """Credentials for an hour from Cloudflare, by its own key or by a Hugging Face token."""
    from fastrtc import get_cloudflare_turn_credentials_async

    return await get_cloudflare_turn_credentials_async(ttl=TURN_TTL_SEC)


def parse_ice_servers(text: str | None) -> list[dict[str, Any]]:
    """The ``iceServers`` of a WebRTC configuration (RTCIceServer, W3C); raises ConfigError for anything else."""
    try:
        servers = json.loads(text) if text else []
    except ValueError as error:
        raise ConfigError(f"ice_servers is no JSON ({error}); {_EXAMPLE}") from None
    for server in servers if isinstance(servers, list) else [servers]:
        known = isinstance(server, dict) and server.keys() <= {"urls", "username", "credential"}
        urls = server.get("urls") if known else None
        urls = [urls] if isinstance(urls, str) else urls
        texts = known and all(isinstance(server.get(name, ""), str) for name in ("username", "credential"))
        if not texts or not isinstance(servers, list) or not isinstance(urls, list) or not urls:
            raise ConfigError(f"ice_servers must be a list of objects with urls, username, credential; {_EXAMPLE}")
        for url in urls:
            if not isinstance(url, str) or not url.startswith(("stun:", "stuns:", "turn:", "turns:")):
                raise ConfigError(f"ice_servers has the address {url!r}; stun:, stuns:, turn: and turns: are allowed")
            if url.startswith("turn") and not (server.get("username") and server.get("credential")):
                raise ConfigError(f"ice_servers has {url!r} without username and credential, which TURN needs")
    return servers


class IceServers:
    """The ICE servers of both sides of a connection.

    Servers of the operator's own win, for both sides. Then come TURN credentials, for every browser, since a page that
    listens on loopback may be reached through a tunnel unawares. Without either it is STUN for visitors elsewhere and
    nothing on this machine.
    """

    def __init__(
        self, *, local_only: bool, given: list[dict[str, Any]] | None = None, has_turn: bool = False,
        fetch: FetchTurn = cloudflare_turn, clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self._local_only, self._given, self._has_turn = local_only, list(given or []), has_turn
        self._fetch, self._clock = fetch, clock
        self._fetch_from = float("-inf")
        self._relays = False  # whether the last fetch brought credentials
        self._warned = False
        if not local_only:
            self._warn_without_relay()

    @classmethod
    def of(cls, settings: Settings, environ: Mapping[str, str] | None = None) -> IceServers:
        """As settings and environment say; raises ConfigError for invalid servers."""
        return cls(
            local_only=listens_locally(settings, environ),
            given=parse_ice_servers(settings.ice_servers),
            has_turn=has_turn_credentials(environ),
        )

    async def for_browser(self, elsewhere: bool) -> dict[str, Any]:
        """``RTCConfiguration`` for a browser, on this machine or ``elsewhere``. Never raises: that would leave the
        page without a connection."""
        if self._given:
            return {"iceServers": self._given}
        found = await self._turn() if self._has_turn else None
        if found is not None:
            return found
        return STUN_ONLY if self._is_far(elsewhere) else NO_SERVERS

    def for_server(self, elsewhere: bool) -> dict[str, Any]:
        """The server's own; an unreachable one would delay every connection by 5 s, so none without need."""
        if self._given:
            return {"iceServers": self._given}
        return STUN_ONLY if self._is_far(elsewhere) or self._relays else NO_SERVERS

    def _is_far(self, elsewhere: bool) -> bool:
        if elsewhere:
            self._warn_without_relay()
        return elsewhere or not self._local_only

    async def _turn(self) -> dict[str, Any] | None:
        if self._clock() < self._fetch_from:
            return None
        try:
            found = await asyncio.wait_for(self._fetch(), TURN_WITHIN_SEC)
        except Exception as error:
            log.warning("no TURN credentials (%s); visitors behind strict firewalls will not connect", error)
            self._fetch_from, self._relays = self._clock() + TURN_AGAIN_SEC, False
            return None
        self._relays = True
        return found

    def _warn_without_relay(self) -> None:
        if not (self._warned or self._given or self._has_turn):
            self._warned = True
            log.warning(
                "no TURN server is set (HF_TOKEN, a Cloudflare key or --ice-servers): "
                "visitors behind a firewall or a tunnel cannot talk"
            )


async def network_round_trip_ms(pc: RTCPeerConnection | None) -> float | None:
    """The network's part of the delay, as RTCP measures it; None while it is unknown."""
    for sender in pc.getSenders() if pc is not None else ():
        for report in (await sender.getStats()).values():
            seconds = getattr(report, "roundTripTime", None)
            if report.type == "remote-inbound-rtp" and seconds is not None:
                return seconds * 1000
    return None
