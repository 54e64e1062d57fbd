"""ICE candidates in the form that FastRTC 0.0.34 reads, and kept until their offer is known.

Its ``handle_offer`` demands ten words of a candidate, as Chromium sends. RFC 8839 requires eight, which Firefox sends
(``candidate:0 1 UDP 2122187007 192.0.2.2 40487 typ host``). Shorter ones are logged as errors and dropped, so that
Firefox never connects behind a stateful firewall. The empty candidate that marks the end of gathering (RFC 8838) is
logged as an error, too, and a candidate that arrives before its offer is lost.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

FASTRTC_WORDS = 10
KEPT_SEC = 10.0
"""An offer follows its first candidate within milliseconds."""
MAX_PORT = 65_535
MOST_CONNECTIONS, MOST_OF_ONE = 64, 64

_CANDIDATE = re.compile(
    r"candidate:[\w+/]{1,32} [1-9]\d{0,2} (?:udp|tcp) \d{1,10} [\w.:%-]{1,255} \d{1,5} "
    r"typ (?:host|srflx|prflx|relay)(?: [!-~]+ [!-~]+)*",
    re.ASCII | re.IGNORECASE,
)


def complete_candidate(given: Any) -> dict[str, Any] | None:
    """A browser's ``RTCIceCandidateInit`` as FastRTC reads it; None for the end of gathering.

    Raises ValueError for anything else.
    """
    if given is None:
        return None
    line = given.get("candidate", "") if isinstance(given, dict) else None
    if not isinstance(line, str):
        raise ValueError("a candidate needs a text in its field 'candidate'")
    line = line.strip().removeprefix("a=")
    if not line:
        return None
    if not _CANDIDATE.fullmatch(line):
        raise ValueError("this is no ICE candidate")
    words = line.split()
    if not _is_host(words[4]) or int(words[5]) > MAX_PORT:
        raise ValueError("a candidate needs an IP address or a .local name, and a port")
    if len(words) < FASTRTC_WORDS:
        words += ["generation", "0"]
    mid, index = given.get("sdpMid"), given.get("sdpMLineIndex")
    mid, index = mid if isinstance(mid, str) else None, index if isinstance(index, int) else None
    if mid is None and index is None:
        raise ValueError("a candidate needs sdpMid or sdpMLineIndex")
    return {"candidate": " ".join(words), "sdpMid": mid, "sdpMLineIndex": index}


def _is_host(text: str) -> bool:
    """An address, or the multicast-DNS name with which browsers hide it."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return text.lower().endswith(".local")
    return True


class EarlyCandidates:
    """Candidates of connections whose offer is still on its way; bounded in number and time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, list[dict[str, Any]]]] = OrderedDict()

    def keep(self, webrtc_id: str, candidate: dict[str, Any]) -> None:
        self._forget_old()
        _, candidates = self._kept.setdefault(webrtc_id, (self._clock(), []))
        if len(candidates) < MOST_OF_ONE:
            candidates.append(candidate)
        while len(self._kept) > MOST_CONNECTIONS:
            self._kept.popitem(last=False)

    def take(self, webrtc_id: str) -> list[dict[str, Any]]:
        """What was kept for a connection, in order; it is forgotten here."""
        self._forget_old()
        _, candidates = self._kept.pop(webrtc_id, (0.0, []))
        return candidates

    def _forget_old(self) -> None:
        oldest = self._clock() - KEPT_SEC
        while self._kept and next(iter(self._kept.values()))[0] < oldest:
            self._kept.popitem(last=False)
