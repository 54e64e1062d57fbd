"""A jitter buffer for the microphone that grows with the reordering it sees; for aiortc 1.9 to 1.16.

aiortc's own holds 16 packets of audio and hands out one for each that arrives: a lost packet delays all later sound by
280 ms for good. A shorter one loses what is reordered further. aiortc has no setting for either.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiortc import RTCPeerConnection
    from aiortc.jitterbuffer import JitterFrame
    from aiortc.rtp import RtpPacket

log = logging.getLogger(__name__)

LEAST_DEPTH, MOST_DEPTH = 3, 16
"""Later packets to be seen before a missing one is given up; of 20 ms each, so 60 to 320 ms."""
WINDOW_PACKETS = 250
"""The depth follows the worst reordering of this and the previous window (5 to 10 s)."""
RESTART_PACKETS = 1000
"""A jump in sequence numbers by more is a new stream."""

_JITTER_BUFFER, _HANDLE = "_RTCRtpReceiver__jitter_buffer", "_handle_rtp_packet"


class Reordering:
    """Puts packets in order; a missing one is waited for as long as reordering of late makes worthwhile."""

    def __init__(self) -> None:
        self.lost_packets = 0  # given up, whether or not they came later
        self._next: int | None = None  # sequence number, unwrapped, of the packet to hand out next
        self._highest = 0
        self._held: dict[int, RtpPacket] = {}
        self._given_up: set[int] = set()
        self._worst, self._worst_before = 0, 0
        self._left_in_window = WINDOW_PACKETS

    @property
    def depth(self) -> int:
        return min(max(LEAST_DEPTH, self._worst + 1, self._worst_before + 1), MOST_DEPTH)

    def push(self, packet: RtpPacket) -> list[RtpPacket]:
        """Take a packet as it arrives; gives those that are due, in order."""
        number = self._unwrapped(packet.sequence_number)
        if self._next is None or abs(number - self._highest) > RESTART_PACKETS:
            due = [self._held[key] for key in sorted(self._held)]
            self._held.clear()
            self._given_up.clear()
            self._next, self._highest = number + 1, number
            return [*due, packet]
        self._note_reordering(number)
        if number >= self._next:
            self._held.setdefault(number, packet)
        self._highest = max(self._highest, number)
        return self._due()

    def _due(self) -> list[RtpPacket]:
        assert self._next is not None, "the first packet sets it"
        due = []
        while self._held:
            if (packet := self._held.pop(self._next, None)) is not None:
                due.append(packet)
            elif self._highest - self._next >= self.depth:
                self.lost_packets += 1
                self._given_up.add(self._next)
            else:
                break
            self._next += 1
        return due

    def _note_reordering(self, number: int) -> None:
        """Packets that came before this one though they are later; a duplicate says nothing."""
        is_new = number > self._highest
        if not is_new and (number in self._given_up or (number >= (self._next or 0) and number not in self._held)):
            self._given_up.discard(number)
            self._worst = max(self._worst, self._highest - number)
        self._left_in_window -= 1
        if self._left_in_window == 0:
            self._worst, self._worst_before = 0, self._worst
            self._left_in_window = WINDOW_PACKETS
            self._given_up = {lost for lost in self._given_up if self._highest - lost <= WINDOW_PACKETS}

    def _unwrapped(self, sequence_number: int) -> int:
        """The 16-bit number continued past 65 535, as near as possible to the newest."""
        if self._next is None:
            return sequence_number
        step = (sequence_number - self._highest + 0x8000) % 0x10000 - 0x8000
        return self._highest + step


class _PassOn:
    """Stands in for aiortc's JitterBuffer where packets arrive in order: each is a frame, at once."""

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame]:
        from aiortc.jitterbuffer import JitterFrame

        return False, JitterFrame(data=packet._data, timestamp=packet.timestamp)  # type: ignore[attr-defined]


def reorder_microphone(pc: RTCPeerConnection | None) -> Reordering:
    """Put the packets of a connection's one microphone in order before aiortc decodes them; counts the lost ones."""
    reordering = Reordering()
    for receiver in pc.getReceivers() if pc is not None else ():
        if not (hasattr(receiver, _JITTER_BUFFER) and hasattr(receiver, _HANDLE)):
            log.warning("this aiortc keeps its jitter buffer elsewhere: the microphone arrives late")
            continue
        setattr(receiver, _JITTER_BUFFER, _PassOn())
        setattr(receiver, _HANDLE, _in_order(reordering, getattr(receiver, _HANDLE)))
    return reordering


def _in_order(reordering: Reordering, handle: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    async def handle_in_order(packet: RtpPacket, arrival_time_ms: int) -> Any:
        for due in reordering.push(packet):
            await handle(due, arrival_time_ms=arrival_time_ms)

    return handle_in_order
