"""Other programs' websockets beside the page: on its port, and Moshi's on one of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.routing import BaseRoute

from personaplex.protocols.door import Door
from personaplex.protocols.port import Port
from personaplex.protocols.routes import all_routes, moshi_routes
from personaplex.web.address import listening_host

if TYPE_CHECKING:
    from personaplex.serving.hosted import Host


class Clients:
    """Programs that talk; they share the page's queue and limits."""

    def __init__(self, host: Host) -> None:
        settings = host.settings
        self._settings = settings
        self._door = Door(
            settings,
            lambda: host.hosted,
            loading=lambda: host.loading.sentence if host.hosted is None else "",
            is_lent=lambda: host.is_lent,
            recognition=host.recognition,
        )
        self._port: Port | None = None

    @property
    def connections(self) -> int:
        """Websockets that are open."""
        return self._door.connections

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """For the page's port."""
        return all_routes(self._door) if self._settings.clients else []

    def start(self) -> None:
        """Listen on Moshi's port, if one was asked for; raises ConfigError where that does not work."""
        from personaplex.web.listeners import Listeners
        from personaplex.web.page import access

        settings = self._settings
        if settings.moshi_port is None or not settings.clients:
            return
        routes = moshi_routes(self._door)
        app = Starlette(routes=routes, middleware=[access(settings, Listeners(), routes)])
        self._port = Port(app, listening_host(settings), settings.moshi_port, settings.ssl_cert, settings.ssl_key)
        self._port.start()

    def close(self) -> None:
        if self._port is not None:
            self._port.close()
