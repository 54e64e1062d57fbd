"""`/twilio/media`, as Twilio's Media Streams speak it."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from client_server import serving
from test_client_realtime import TOKENIZER, talkative
from websockets.exceptions import ConnectionClosed

from personaplex.audio import g711

RATE_HZ = 8000
TONE = 0.3 * np.sin(2 * np.pi * 400 * np.arange(160) / RATE_HZ)
FORM = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}


class Call:
    """Twilio's end. Numbers are strings there."""

    def __init__(self, socket):
        self.socket, self.sent, self.got = socket, 0, []

    def send(self, event: str, **fields) -> None:
        self.sent += 1
        self.socket.send(json.dumps({"event": event, "sequenceNumber": str(self.sent), "streamSid": "MZ1", **fields}))

    def start(self, **parameters: str) -> None:
        self.send("connected", protocol="Call", version="1.0.0")
        self.send("start", start={"streamSid": "MZ1", "mediaFormat": FORM, "customParameters": parameters})

    def speak(self, packets: int) -> None:
        payload = base64.b64encode(g711.encode(TONE, "mu")).decode()
        for number in range(packets):
            media = {"track": "inbound", "chunk": str(number), "timestamp": str(20 * number), "payload": payload}
            self.send("media", media=media)

    def until(self, event: str) -> dict:
        while True:
            self.got.append(json.loads(self.socket.recv(timeout=20)))
            assert self.got[-1]["streamSid"] == "MZ1"
            if self.got[-1]["event"] == event:
                return self.got[-1]

    def until_closed(self) -> int:
        try:
            while True:
                self.socket.recv(timeout=20)
        except ConnectionClosed as closed:
            return closed.rcvd.code

    @property
    def heard(self) -> np.ndarray:
        payloads = [event["media"]["payload"] for event in self.got if event["event"] == "media"]
        return g711.decode(b"".join(map(base64.b64decode, payloads)), "mu")


@pytest.fixture(scope="module")
def served():
    with serving(talkative(), tokenizer=TOKENIZER) as served:
        yield served


@pytest.fixture
def call(served):
    call = Call(served.connect("/twilio/media"))
    yield call
    call.socket.close()
    served.wait_until_free()


def test_a_caller_is_greeted_answered_and_may_hang_up(served, call):
    call.start(prompt="You are Anna.", voice="nano-m", seed="7")
    assert call.until("mark")["mark"] == {"name": "turn-1"}
    greeting = call.heard
    assert 6 * 640 <= len(greeting) <= 15 * 640 and np.abs(greeting).max() > 0.2
    conversation = served.session.conversations[-1]
    assert conversation.snapshot[2] == "You are Anna." and conversation.snapshot[1].name == "nano-m"
    assert conversation.options.seed == 7
    call.speak(50)
    assert call.until("mark")["mark"] == {"name": "turn-2"}
    assert max(np.abs(frame).max() for frame in conversation.heard) == pytest.approx(0.3, abs=0.05)
    call.send("dtmf", dtmf={"digit": "1"})
    call.send("mark", mark={"name": "turn-1"})
    call.send("stop", stop={})
    assert call.until_closed() == 1000


def test_what_still_waits_to_be_played_is_thrown_away_when_the_persona_gives_way(served, call):
    session = served.session
    usual, session.on_step = session.on_step, None
    from fake_session import said
    from test_client_realtime import LOUD, QUIET

    def step(conversation, pcm):
        loud = [bool(np.abs(frame).max() > 0.1) for frame in conversation.heard]
        return said(QUIET if sum(loud) > 4 else LOUD, 3)

    session.on_step = step
    call.start(wait_for_greeting="no")
    call.until("media")
    call.speak(60)
    call.until("clear")
    session.on_step = usual


@pytest.mark.parametrize(
    "message",
    [
        "", "[]", "{", b"\0", "[" * 90_000, json.dumps({"event": "start"}), json.dumps({"event": "start", "start": 3}),
        json.dumps({"event": "x", "a": "a" * 200_000}),
        json.dumps({"event": "start", "streamSid": "M", "start": {"mediaFormat": {"encoding": "audio/pcm"}}}),
        json.dumps({"event": "start", "streamSid": "M", "start": {"customParameters": {"seed": "x"}}}),
        json.dumps({"event": "start", "streamSid": "M", "start": {"customParameters": {"persona": "x"}}}),
    ],
)  # fmt: skip
def test_what_twilio_never_sends_ends_the_call(call, message):
    call.socket.send(message)
    assert call.until_closed() == 1008


@pytest.mark.parametrize("media", [None, 3, {}, {"payload": 3}, {"payload": "!!"}])
def test_sound_that_is_none_ends_the_call(call, media):
    call.start(prompt="")
    call.send("media", media=media)
    assert call.until_closed() == 1008


def test_a_call_may_end_before_it_starts(call):
    call.send("connected")
    call.send("stop")
    assert call.until_closed() == 1000


def test_the_key_is_a_parameter():
    with serving(talkative(), api_key="abc") as served:
        for given, code in (({}, 1008), ({"key": "wrong"}, 1008)):
            call = Call(served.connect("/twilio/media"))
            call.start(**given)
            assert call.until_closed() == code and not served.session.conversations
        call = Call(served.connect("/twilio/media"))
        call.start(key="abc")
        call.until("media")
        call = Call(served.connect("/twilio/media", additional_headers={"Authorization": "Bearer abc"}))
        call.start()
        served.wait_until(lambda: served.server.status().waiting == 1)


def test_a_stream_that_never_starts_is_closed(monkeypatch):
    monkeypatch.setattr("personaplex.protocols.twilio.TwilioTalk.opens_within_sec", 0.05)
    with serving(talkative()) as served:
        assert Call(served.connect("/twilio/media")).until_closed() == 1008
