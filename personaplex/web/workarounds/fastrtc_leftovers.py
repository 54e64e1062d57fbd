"""Cleaning up after FastRTC 0.0.34: table entries of closed connections, and messages into a closed channel."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastrtc import WebRTC

FORGET_AFTER_SEC = 2.0


class QuietChannel:
    """A data channel that drops messages once it is closed; FastRTC would log a traceback for each."""

    def __init__(self, channel: Any):
        self._channel = channel

    def send(self, message: str) -> None:
        if self._channel.readyState == "open":
            self._channel.send(message)


def forget_connection(rtc: WebRTC | None, webrtc_id: str, track: Any = None) -> None:
    """Take a closed connection out of FastRTC's tables; after a failure it leaves entries behind.

    FORGET_AFTER_SEC later, since the page may still be fetching its last update.
    """

    def forget() -> None:
        if track is not None:
            track.stop()
        if rtc is None or webrtc_id in rtc.pcs:
            return
        for table in (rtc.handlers, rtc.connections, rtc.data_channels, rtc.connection_timeouts):
            table.pop(webrtc_id, None)
        outputs = rtc.additional_outputs.pop(webrtc_id, None)
        if outputs is not None:
            outputs.quit.set()

    asyncio.get_running_loop().call_later(FORGET_AFTER_SEC, forget)
