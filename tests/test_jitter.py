"""The microphone's packets on networks that lose, delay and reorder them."""

import asyncio
import random

import pytest
from aiortc import RTCPeerConnection
from aiortc.jitterbuffer import JitterBuffer
from aiortc.rtp import RtpPacket

from personaplex.web.workarounds import aiortc_jitter
from personaplex.web.workarounds.aiortc_jitter import LEAST_DEPTH, MOST_DEPTH, Reordering, reorder_microphone

PACKET_MS = 20


def packet(number):
    made = RtpPacket(sequence_number=number % 0x10000, timestamp=960 * number)
    made._data = b"sound"
    return made


def arrivals(count, *, jitter_ms=0, lost=0.0, first=0, seed=1):
    """Numbers of packets in the order in which they arrive, each with its time of arrival."""
    dice = random.Random(seed)
    sent = [(PACKET_MS * n + 100 + dice.uniform(-jitter_ms, jitter_ms), first + n) for n in range(count)]
    return sorted(each for each in sent if dice.random() >= lost)


def played(arriving):
    """Packet → milliseconds from its sending to its being handed out."""
    reordering, waits = Reordering(), {}
    for at_ms, number in arriving:
        for due in reordering.push(packet(number)):
            waits[due.timestamp // 960] = at_ms - PACKET_MS * (due.timestamp // 960 - arriving_first(arriving))
    return reordering, waits


def arriving_first(arriving):
    return min(number for _, number in arriving)


def test_a_good_network_delays_nothing():
    reordering, waits = played(arrivals(500))
    assert len(waits) == 500 and set(waits.values()) == {100} and reordering.lost_packets == 0


def test_a_lost_packet_delays_nothing_for_good():
    arriving = [each for each in arrivals(400) if each[1] != 100]
    reordering, waits = played(arriving)
    assert len(waits) == 399 and reordering.lost_packets == 1
    assert max(waits.values()) <= 100 + LEAST_DEPTH * PACKET_MS and waits[110] == 100
    theirs = JitterBuffer(capacity=16, prefetch=4)
    late = [theirs.add(packet(number))[1] for _, number in arriving]
    assert arriving[-1][1] - late[-1].timestamp // 960 > 10, "aiortc catches up by itself now: leave its buffer alone"


@pytest.mark.parametrize("jitter_ms", [15, 50, 100])
def test_the_buffer_grows_with_the_reordering(jitter_ms):
    """aiortc's buffer of four packets lost 40 % of a microphone at ±50 ms."""
    reordering, waits = played(arrivals(3000, jitter_ms=jitter_ms))
    assert len(waits) > 0.97 * 3000 and list(waits) == sorted(waits)
    assert reordering.lost_packets + len(waits) >= 3000 - MOST_DEPTH
    assert max(waits.values()) <= 100 + 2 * jitter_ms + 2 * LEAST_DEPTH * PACKET_MS


def test_loss_and_jitter_for_a_minute_then_all_is_as_before():
    bad = arrivals(3000, jitter_ms=50, lost=0.02)
    good = [(at_ms + 60_000 + 100, number) for at_ms, number in arrivals(1000, first=3001)]
    reordering, waits = played(bad)
    assert len(waits) > 0.95 * 3000
    given = {due.timestamp // 960 for _, number in good for due in reordering.push(packet(number))}
    assert reordering.depth == LEAST_DEPTH and len(given) >= 1000


def test_what_never_arrived_is_counted():
    arriving = [each for each in arrivals(1000) if each[1] % 10]
    reordering, waits = played(arriving)
    assert len(waits) == 900 and reordering.lost_packets == 99, "the first was never expected"


def test_numbers_that_wrap_and_a_stream_that_begins_anew():
    reordering, waits = played(arrivals(200, first=65_436))
    assert len(waits) == 200 and reordering.lost_packets == 0
    assert len(reordering.push(packet(30_000))) == 1 and len(reordering.push(packet(30_001))) == 1


def test_duplicates_are_dropped_and_make_nothing_slower():
    reordering = Reordering()
    arriving = [number - copy * 9 for number in range(9, 300) for copy in range(2)]
    given = [due.sequence_number for number in arriving for due in reordering.push(packet(number))]
    assert given == list(range(9, 300))
    assert reordering.depth == LEAST_DEPTH


def test_aiortcs_receiver_gets_them_in_order():
    async def scene():
        peer = RTCPeerConnection()
        receiver = peer.addTransceiver("audio").receiver
        got = []

        async def handle(received, arrival_time_ms):
            got.append(received.sequence_number)

        receiver._handle_rtp_packet = handle
        reordering = reorder_microphone(peer)
        for number in (1, 3, 2, 5, 4, 6):
            await receiver._handle_rtp_packet(packet(number), arrival_time_ms=0)
        buffer = getattr(receiver, aiortc_jitter._JITTER_BUFFER)
        await peer.close()
        return got, reordering.lost_packets, buffer.add(packet(7))

    got, lost, (picture_lost, frame) = asyncio.run(scene())
    assert got == [1, 2, 3, 4, 5, 6] and lost == 0
    assert not picture_lost and frame.data == b"sound" and frame.timestamp == 7 * 960


def test_an_aiortc_that_keeps_its_buffer_elsewhere_is_told_of(caplog):
    class Peer:
        def getReceivers(self):  # noqa: N802, aiortc's name
            return [object()]

    reorder_microphone(Peer())
    assert "jitter buffer" in caplog.text
    assert reorder_microphone(None).lost_packets == 0
