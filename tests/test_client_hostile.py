"""Clients that mean no good: each is refused or ended, its slot is free, and nobody else notices."""

from __future__ import annotations

import os
import struct

import pytest
from client_server import MoshiClient, serving

from personaplex.audio.ogg import PageWriter
from personaplex.protocols.moshi import BURST_PACKETS, Allowance


def test_one_slot_and_ten_clients_at_once():
    """One talks, eight wait, the others are refused; each that leaves lets the next one in."""
    with serving() as served:
        clients = [MoshiClient(served.connect("/api/chat")) for _ in range(11)]
        served.wait_until(lambda: served.server.status().waiting == 8)
        served.wait_until(lambda: served.door.connections == 9)
        talking = [client for client in clients if client.socket.recv_messages.frames.qsize() or client.is_live]
        refused = [client for client in talking if client.listen() == 5]
        assert len(refused) == 2 and {client.until_closed() for client in refused} == {1013}
        left = [client for client in clients if client not in refused]
        for _ in range(9):
            served.wait_until(lambda: any(client.is_live or received(client) for client in left))
            lucky = next(client for client in left if client.is_live or received(client))
            lucky.wait_for_handshake().talk(2)
            lucky.socket.close()
            left.remove(lucky)
        served.wait_until_free()
        assert served.session.free == [0]


def received(client: MoshiClient) -> int:
    return client.socket.recv_messages.frames.qsize()


@pytest.fixture
def neighbour():
    """A server for two, and somebody who talks on it all the time."""
    with serving(conversations=2) as served:
        client = MoshiClient(served.connect("/api/chat")).wait_for_handshake()
        client.talk(3)
        yield served, client
        client.talk(3)
        client.socket.close()
        served.wait_until_free()


@pytest.mark.parametrize(
    "messages",
    [
        [b"\1OggS"],
        [b"\1" + PageWriter().page(b"\xff" * 400, 0)[:200]],
        [b"", b"\1", b"\0", b"\3\3", b"\4{", b"\6", b"\xff" * 1000, b"\2\xff"],
        [b"\1" + os.urandom(100_000)],
        [b"\1" + b"OggS" * 100_000],
        ["a text frame", "{}"],
    ],
    ids=["a beginning", "half a page", "kinds of messages", "noise", "pages without end", "text"],
)
def test_garbage_ends_nothing(neighbour, messages):
    served, _ = neighbour
    client = MoshiClient(served.connect("/api/chat")).wait_for_handshake()
    for message in messages:
        client.socket.send(message)
    client.talk(1)
    client.socket.close()


@pytest.mark.parametrize("opcode", [1, 2])
def test_a_message_of_a_hundred_megabytes_is_refused_before_it_is_read(neighbour, opcode):
    served, _ = neighbour
    client = MoshiClient(served.connect("/api/chat")).wait_for_handshake()
    client.socket.socket.sendall(struct.pack("!BBQ4s", 0x80 | opcode, 0xFF, 100_000_000, b"mask") + b"a" * 1000)
    assert client.until_closed() == 1009
    served.wait_until(lambda: served.server.status().running == 1, 1.0)


def test_a_short_message_that_claims_hours_of_sound_is_not_decoded(neighbour):
    """255 packets of one byte stand for 15 s on a page of 537 bytes: a message of 1 MB would be 8 h."""
    served, other = neighbour
    page = bytearray(PageWriter().page(b"", 0))
    client = MoshiClient(served.connect("/api/chat")).wait_for_handshake()
    packets = b"".join(claiming(page) for _ in range(200))
    client.socket.send(b"\1" + packets)
    other.talk(3)
    client.socket.close()


def claiming(page: bytearray) -> bytes:
    from personaplex.audio.ogg import checksum

    long = bytearray(page[:26]) + bytes([255]) + b"\1" * 255 + b"\x1b" * 255
    long[22:26] = bytes(4)
    long[22:26] = checksum(bytes(long)).to_bytes(4, "little")
    return bytes(long)


def test_an_allowance_runs_out_and_fills_again(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("personaplex.protocols.moshi.time.monotonic", lambda: now[0])
    allowance = Allowance()
    assert allowance.now() == BURST_PACKETS
    allowance.spend(10 * BURST_PACKETS)
    assert allowance.now() == 0
    now[0] += 1.0
    assert allowance.now() == 200
    now[0] += 1000
    assert allowance.now() == BURST_PACKETS
