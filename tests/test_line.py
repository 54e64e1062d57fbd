"""The line between the page and its workers: its layout, who may call, and what breaks it."""

from __future__ import annotations

import math
import socket
import threading
import time
from dataclasses import fields

import numpy as np
import pytest

from personaplex.messages import ConversationState, EndReason, FrameOutput, Meter, Phase
from personaplex.serving import exchange as exchange_module
from personaplex.serving import line as line_module
from personaplex.serving.exchange import Exchange
from personaplex.serving.layout import (
    HEADER,
    MAX_PAYLOAD_BYTES,
    Kind,
    decode_frame,
    decode_sound,
    decode_state,
    encode_frame,
    encode_sound,
    encode_state,
)
from personaplex.serving.line import MAGIC, LineBroken, dial

STATES = [
    ConversationState(Phase.QUEUED, place=3),
    ConversationState(Phase.PREPARING, done=7, total=120),
    ConversationState(Phase.TALKING, left_sec=29.5),
    ConversationState(Phase.ENDED, reason=EndReason.REFUSED, message="Zu viele Zeichen – „höchstens“ 300."),
]


def wait_until(condition, timeout_sec=10.0):
    deadline = time.monotonic() + timeout_sec
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.002)


# ---------------------------------------------------------------------------------- the layout


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.phase.value)
def test_a_state_comes_back_as_it_was(state):
    assert decode_state(encode_state(state)) == state


def test_every_phase_and_every_reason_can_be_sent():
    for phase in Phase:
        assert decode_state(encode_state(ConversationState(phase))).phase is phase
    for reason in EndReason:
        assert decode_state(encode_state(ConversationState(Phase.ENDED, reason=reason))).reason is reason


def test_a_frame_comes_back_bit_for_bit():
    numbers = np.random.default_rng(0)
    pcm, heard = (numbers.standard_normal(1920).astype(np.float32) for _ in range(2))
    pcm[3] = math.nan  # what a lost model says; whoever listens is to see it
    output, meter = FrameOutput(pcm, -1, np.arange(-1, 16)), Meter(12.5, 31.25, 9, 2)
    found, found_heard, found_meter = decode_frame(encode_frame(output, heard, meter))
    assert found.pcm.tobytes() == pcm.tobytes() and found_heard.tobytes() == heard.tobytes()
    assert found.text_token == -1 and found.tokens.tolist() == output.tokens.tolist() and found_meter == meter
    assert found.tokens.dtype == np.int64 and found.pcm.dtype == found_heard.dtype == np.float32


def test_the_layout_knows_every_field():
    """A field that is added to a message must be added to the layout, as a kind or at the payload's end."""
    assert [field.name for field in fields(ConversationState)] == [
        "phase", "place", "done", "total", "left_sec", "reason", "message",
    ]  # fmt: skip
    assert [field.name for field in fields(FrameOutput)] == ["pcm", "text_token", "tokens"]
    assert [field.name for field in fields(Meter)] == ["step_ms", "answer_ms", "frames", "dropped_frames"]


@pytest.mark.parametrize(
    "payload", [b"", b"\xff" * 22, encode_state(STATES[0])[:-1], encode_state(STATES[0]) + b"\xff"]
)
def test_what_is_not_a_state_is_refused(payload):
    with pytest.raises(ValueError):  # noqa: PT011 - UnicodeDecodeError is one, too
        decode_state(payload)


def test_what_is_not_a_frame_is_refused():
    whole = encode_frame(FrameOutput(np.zeros(4, np.float32), 1, np.zeros(2, np.int64)), np.zeros(4), Meter())
    for payload in (b"", whole[:-1], whole + b"\0", b"\xff" * len(whole)):
        with pytest.raises(ValueError, match="bytes"):
            decode_frame(payload)
    with pytest.raises(ValueError, match="multiple"):
        decode_sound(b"\0" * 7)


# ---------------------------------------------------------------------------------- the line


@pytest.fixture(params=["unix", "tcp:127.0.0.1:0", "tcp:::1:0"])
def exchange(request):
    try:
        with Exchange(request.param) as made:
            yield made
    except OSError as error:
        pytest.skip(f"this machine has no {request.param}: {error}")


@pytest.fixture
def local():
    with Exchange("unix") as made:
        yield made


def connected(exchange):
    expected = exchange.expect()
    worker = dial(expected.address, expected.ticket)
    page = expected.wait()
    assert page is not None
    return page, worker


def test_messages_arrive_whole_and_in_order_both_ways(exchange):
    page, worker = connected(exchange)
    with page, worker:
        for number in range(200):
            worker.send(Kind.SOUND, encode_sound(np.full(1920, number, np.float32)), within_sec=1)
            kind, payload = page.receive(within_sec=1)
            assert kind == Kind.SOUND and decode_sound(payload)[-1] == number
        page.send(250, b"of a newer side", within_sec=1)
        page.send(Kind.HANG_UP, within_sec=1)
        assert worker.receive(within_sec=1) == (250, b"of a newer side")
        assert worker.receive(within_sec=1) == (Kind.HANG_UP, b"")


def test_two_calls_at_once_get_their_own_workers(local):
    first, second = local.expect(), local.expect()
    with dial(second.address, second.ticket) as its, dial(first.address, first.ticket) as other:
        its.send(Kind.BEAT, b"second", within_sec=1)
        other.send(Kind.BEAT, b"first", within_sec=1)
        assert first.wait().receive(within_sec=1)[1] == b"first"
        assert second.wait().receive(within_sec=1)[1] == b"second"


def test_who_does_not_know_the_key_gets_no_line_and_disturbs_nobody(local, caplog):
    expected = local.expect()
    wrong_key, unknown = expected.ticket[:-1] + b"?", bytes(len(expected.ticket))
    for ticket in (wrong_key, unknown):
        with pytest.raises(OSError):  # noqa: PT011 - told by the proof, or by the closed connection
            dial(local.address, ticket)
    with dial(local.address, expected.ticket), expected.wait() as page:
        assert page is not None
        with pytest.raises(OSError):  # noqa: PT011 - a ticket is good for one call
            dial(local.address, expected.ticket)
    assert expected.ticket.hex() not in caplog.text


def test_a_worker_proves_itself_to_the_page_with_the_key_and_not_by_the_calls_name(local, monkeypatch, caplog):
    """An impostor who saw the name on the network, and asks no proof of the page."""
    expected = local.expect()
    impostor = socket.socket(socket.AF_UNIX)
    impostor.connect(local.address.removeprefix("unix:"))
    impostor.sendall(MAGIC + expected.ticket[:16] + bytes(32))
    assert len(impostor.recv(64, socket.MSG_WAITALL)) == 64
    impostor.sendall(bytes(32))
    wait_until(lambda: "does not know the key" in caplog.text)
    assert impostor.recv(1) == b""
    impostor.close()
    with dial(local.address, expected.ticket):
        assert expected.wait() is not None


def test_strangers_who_say_nothing_keep_no_worker_out(local, monkeypatch):
    monkeypatch.setattr(exchange_module, "HANDSHAKE_SEC", 0.3)
    strangers = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    for stranger in strangers:
        stranger.connect(local.address.removeprefix("unix:"))
    expected = local.expect()
    with dial(local.address, expected.ticket):
        assert expected.wait() is not None
    for stranger in strangers:
        assert stranger.recv(1) == b"", "they are closed after a while"
        stranger.close()


def test_more_strangers_than_allowed_are_closed_at_once(monkeypatch):
    monkeypatch.setattr(exchange_module, "MAX_STRANGERS", 2)
    with Exchange("unix") as made:
        strangers = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for stranger in strangers:
            stranger.settimeout(5)
            stranger.connect(made.address.removeprefix("unix:"))
        assert strangers[2].recv(1) == b""
        for stranger in strangers:
            stranger.close()


def test_an_announced_size_is_bounded(local):
    page, worker = connected(local)
    with page, worker:
        worker.send_raw(HEADER.pack(Kind.FRAME, MAX_PAYLOAD_BYTES + 1), 1)
        with pytest.raises(LineBroken, match="announced"):
            page.receive(within_sec=1)


def test_silence_is_told_from_a_broken_line(local, monkeypatch):
    monkeypatch.setattr(line_module, "REST_SEC", 0.1)
    page, worker = connected(local)
    with page, worker:
        with pytest.raises(TimeoutError):
            page.receive(within_sec=0.02)
        worker.send(Kind.BEAT, within_sec=1)
        assert page.receive(within_sec=1)[0] == Kind.BEAT, "the line is as it was"
        worker.send_raw(HEADER.pack(Kind.SOUND, 8) + b"half", 1)
        with pytest.raises(LineBroken, match="broke off"):
            page.receive(within_sec=1)
    page, worker = connected(local)
    with page:
        worker.close()
        with pytest.raises(LineBroken, match="hung up"):
            page.receive(within_sec=1)


def test_a_page_that_reads_nothing_holds_nobody_up(exchange):
    """It may be stopped while its worker serves others; the line is given up once its buffers are full."""
    page, worker = connected(exchange)
    with page, worker:
        started = time.monotonic()
        with pytest.raises(LineBroken, match="has read nothing"):
            all(worker.send(Kind.FRAME, bytes(16_000), within_sec=0) is None for _ in range(2000))
        assert time.monotonic() - started < 2
        with pytest.raises(OSError):  # noqa: PT011 - a part of a message may be out: nothing may follow it
            worker.send(Kind.BEAT, within_sec=0)


def test_a_line_that_is_hung_up_elsewhere_stops_waiting(local):
    page, worker = connected(local)
    ended = []

    def listen():
        try:
            page.receive(within_sec=None)
        except LineBroken:
            ended.append(True)

    listening = threading.Thread(target=listen)
    listening.start()
    page.hang_up()
    listening.join(5)
    assert ended
    with pytest.raises(OSError):  # noqa: PT011
        page.send(Kind.BEAT, within_sec=1)
    page.close()
    with pytest.raises(OSError):  # noqa: PT011
        page.receive(within_sec=1)
    worker.close()


def test_a_closed_exchange_ends_those_who_wait():
    made = Exchange("unix")
    expected = made.expect()
    made.close()
    assert expected.wait() is None
    with pytest.raises(OSError):  # noqa: PT011
        dial(expected.address, expected.ticket)
    assert not [thread for thread in threading.enumerate() if thread.name == "exchange" and thread.join(5)]


def test_an_address_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="unix:PATH and tcp:HOST:PORT are allowed"):
        dial("http://example", bytes(48))
