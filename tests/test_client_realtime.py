"""`/v1/realtime`, as clients of OpenAI's Realtime API speak it."""

from __future__ import annotations

import base64
import json
import socket
import time
from types import SimpleNamespace

import numpy as np
import pytest
from client_server import serving
from fake_session import FRAME_SAMPLES, FakeSession, said
from websockets.exceptions import ConnectionClosed, InvalidStatus

from personaplex.audio import g711
from personaplex.errors import InputError
from personaplex.protocols import line as line_module
from personaplex.protocols.formats import FORMATS
from personaplex.protocols.line import Frame
from personaplex.protocols.realtime.events import MOST_PARTS, EventError
from personaplex.protocols.realtime.session import NOTHING_SAID_FRAMES, Session
from personaplex.protocols.realtime.settings import SessionSettings
from personaplex.protocols.words import TextPieces
from personaplex.text.transcript import Word
from personaplex.words.recogniser import Utterance

LOUD, QUIET = np.full(FRAME_SAMPLES, 0.25, np.float32), np.zeros(FRAME_SAMPLES, np.float32)
PADDING = 3
PIECES = {10: "\u2581Hello", 11: "\u2581Ann", 12: "a."}
TOKENIZER = SimpleNamespace(piece=lambda token: PIECES[token].encode() if token in PIECES else None)
GREETING = [10, PADDING, 11, 12, PADDING, PADDING]


class Client:
    """One end of a websocket that speaks events."""

    def __init__(self, socket):
        self.socket, self.events = socket, []

    def send(self, type: str, **fields) -> None:
        self.socket.send(json.dumps({"type": type, **fields}))

    def append(self, pcm: np.ndarray) -> None:
        sound = (pcm * 32_767).astype("<i2").tobytes()
        self.send("input_audio_buffer.append", audio=base64.b64encode(sound).decode())

    def until(self, type: str, count: int = 1) -> dict:
        """The next event of this type, or the one after ``count``."""
        while count:
            self.events.append(json.loads(self.socket.recv(timeout=20)))
            count -= self.events[-1]["type"] == type
        return self.events[-1]

    @property
    def types(self) -> list[str]:
        """The events so far, one of each run of sound and words."""
        names = [event["type"] for event in self.events]
        return [name for at, name in enumerate(names) if not name.endswith(".delta") or name not in names[:at]]


def talkative() -> FakeSession:
    """Greets, then answers once the user has spoken; falls silent while it hears somebody."""
    session = FakeSession()

    def step(conversation, pcm):
        heard = [bool(np.abs(frame).max() > 0.1) for frame in conversation.heard]
        at = len(heard) - 1
        if heard[-1]:
            return said(QUIET)
        last_loud = max((number for number, loud in enumerate(heard) if loud), default=-8)
        script = at - (last_loud + 8)
        return said(LOUD, GREETING[script]) if 0 <= script < len(GREETING) else said(QUIET)

    session.on_step = step
    return session


@pytest.fixture(scope="module")
def served():
    with serving(talkative(), tokenizer=TOKENIZER) as served:
        yield served


@pytest.fixture
def client(served):
    client = Client(served.connect("/v1/realtime?model=nano"))
    yield client
    client.socket.close()
    served.wait_until_free()


def test_a_recording_in_one_piece_is_answered_by_itself(client):
    """Nothing is sent after it: the server goes on with silence."""
    assert client.until("session.created")["session"]["model"] == "nano"
    client.append(np.concatenate([LOUD] * 12))
    client.send("input_audio_buffer.commit")
    client.send("response.create", response={"metadata": {"client_event_id": "mine"}})
    done = client.until("response.done")["response"]
    assert client.types == [
        "session.created", "input_audio_buffer.committed", "conversation.item.added", "conversation.item.done",
        "input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped",
        "response.created", "response.output_item.added", "conversation.item.added", "response.content_part.added",
        "response.output_audio_transcript.delta", "response.output_audio.delta", "response.output_audio.done",
        "response.output_audio_transcript.done", "response.content_part.done", "conversation.item.done",
        "response.output_item.done", "response.done",
    ]  # fmt: skip
    assert done["status"] == "completed" and done["metadata"] == {"client_event_id": "mine"}
    assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": "Hello Anna."}]
    words = [event for event in client.events if event["type"] == "response.output_audio_transcript.delta"]
    assert "".join(event["delta"] for event in words) == "Hello Anna."
    assert [event["start_time"] for event in words] == [0.0, 0.16, 0.24]
    sound = b"".join(base64.b64decode(event["delta"]) for event in client.events if is_sound(event))
    assert len(sound) == 2 * FRAME_SAMPLES * done["usage"]["output_token_details"]["audio_tokens"]
    assert np.abs(np.frombuffer(sound, "<i2")).max() == pytest.approx(8192, abs=1)
    ids = {event["item"]["id"] for event in client.events if event["type"] == "conversation.item.added"}
    assert len(ids) == 2, "the commit and the turn that the server heard are one item"


def is_sound(event: dict) -> bool:
    return event["type"] == "response.output_audio.delta"


def test_a_client_may_ask_to_be_greeted_before_any_sound(client):
    client.until("session.created")
    client.send("response.create")
    assert client.until("response.done")["response"]["output"][0]["content"][0]["transcript"] == "Hello Anna."


@pytest.mark.parametrize("form", ["audio/pcmu", "audio/pcma"])
def test_a_telephones_formats(client, form):
    client.until("session.created")
    audio = {side: {"format": {"type": form}} for side in ("input", "output")}
    client.send("session.update", session={"type": "realtime", "audio": audio})
    assert client.until("session.updated")["session"]["audio"]["output"]["format"] == {"type": form}
    law = FORMATS[form].law
    tone = 0.5 * np.sin(2 * np.pi * 400 * np.arange(8000) / 8000)
    client.send("input_audio_buffer.append", audio=base64.b64encode(g711.encode(tone, law)).decode())
    done = client.until("response.done")["response"]
    sound = b"".join(base64.b64decode(event["delta"]) for event in client.events if is_sound(event))
    assert len(sound) == 640 * done["usage"]["output_tokens"]
    assert np.abs(g711.decode(sound, law)[1000:2000]).mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ("{", "invalid_json", None),
        ("[" * 100_000, "invalid_json", None),
        ("[" + "1," * MOST_PARTS + "1]", "invalid_json", None),
        (b"\0\1", "invalid_json", None),
        ("[]", "invalid_event", "type"),
        ({"type": 3}, "invalid_event", "type"),
        ({"type": "no.such.event"}, "unknown_event", "type"),
        ({"type": "session.update", "session": []}, None, None),
        ({"type": "session.update", "session": 3}, "invalid_type", "session"),
        ({"type": "session.update", "session": {"type": "transcription"}}, "invalid_value", "type"),
        ({"type": "session.update", "session": {"instructions": {}}}, "invalid_type", "session.instructions"),
        ({"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/opus"}}}}},
         "invalid_value", "session.audio.input.format"),
        ({"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}}},
         "invalid_value", "session.audio.input.format.rate"),
        ({"type": "session.update", "session": {"audio": {"input": {"turn_detection": {"type": "x"}}}}},
         "invalid_value", "session.audio.input.turn_detection"),
        ({"type": "session.update", "session": {"audio": {"output": {"voice": 3}}}},
         "invalid_type", "session.audio.output.voice"),
        ({"type": "input_audio_buffer.append", "audio": "!!"}, "invalid_value", "audio"),
        ({"type": "input_audio_buffer.append"}, "invalid_type", "audio"),
        ({"type": "response.create", "response": {"metadata": {"a": 1}}}, "invalid_value", "metadata"),
        ({"type": "response.cancel"}, "response_cancel_not_active", None),
        ({"type": "conversation.item.retrieve", "item_id": "x"}, "item_not_found", "item_id"),
        ({"type": "conversation.item.truncate", "item_id": 3}, "invalid_type", "item_id"),
        ({"type": "conversation.item.create", "item": {"type": "x"}}, "invalid_value", "item.type"),
        ({"type": "conversation.item.create", "item": {"type": "message", "role": "x"}}, "invalid_value", "item.role"),
        ({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": "x"}},
         "invalid_type", "item.content"),
        ({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [{"type": "y"}]}},
         "invalid_value", "item.content"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_an_error_and_the_session_goes_on(client, message, code, param):
    client.until("session.created")
    given = {**message, "event_id": "mine"} if isinstance(message, dict) else message
    client.socket.send(json.dumps(given) if isinstance(given, dict) else given)
    client.send("input_audio_buffer.clear")
    client.until("input_audio_buffer.cleared")
    errors = [event["error"] for event in client.events if event["type"] == "error"]
    assert [(error["code"], error["param"]) for error in errors] == ([(code, param)] if code else [])
    for error in errors:
        assert error["message"] and error["event_id"] == (
            "mine" if code != "invalid_event" and isinstance(message, dict) else None
        )


def test_functions_and_other_models_voices_are_declined_in_the_answer(client):
    client.until("session.created")
    tool = {"type": "function", "name": "f", "parameters": {}}
    detector = {"type": "semantic_vad", "create_response": False}
    wished = {
        "tools": [tool], "tool_choice": "required", "output_modalities": ["text"], "instructions": "You are Anna.",
        "audio": {"output": {"voice": "marin", "speed": 1.5}, "input": {"turn_detection": detector}},
    }  # fmt: skip
    client.send("session.update", session=wished)
    session = client.until("session.updated")["session"]
    assert (session["tools"], session["tool_choice"], session["output_modalities"]) == ([], "none", ["audio"])
    assert session["instructions"] == "You are Anna." and session["audio"]["output"]["speed"] == 1.0
    assert session["audio"]["input"]["turn_detection"]["create_response"] is True
    client.send("response.create")
    client.until("response.created")
    client.send("session.update", session={"audio": {"output": {"voice": "nano-m"}}})
    assert client.until("session.updated")["session"]["audio"]["output"]["voice"] == "nano-f", "it is speaking already"


def test_instructions_in_mid_call_are_told_to_the_model_or_honestly_not(served, client):
    client.until("session.created")
    client.send("session.update", session={"instructions": "You are Anna."})
    client.until("session.updated")
    client.send("response.create")
    client.until("response.created")
    conversation = served.session.conversations[-1]
    client.send("session.update", session={"instructions": "The pool is closed."})
    assert client.until("session.updated")["session"]["instructions"] == "The pool is closed."
    client.send("conversation.item.create", item={"type": "message", "role": "system", "content": [
        {"type": "input_text", "text": "The pool is open."}]})  # fmt: skip
    client.until("conversation.item.added")
    served.wait_until(lambda: len(conversation.told) == 2)
    assert [text for text, _ in conversation.told] == ["The pool is closed.", "The pool is open."]

    def refuse(conversation, text):
        raise InputError("the memory is full")

    served.session.on_tell = refuse
    client.send("session.update", session={"instructions": "Never mind."})
    assert client.until("session.updated")["session"]["instructions"] == "The pool is closed."
    served.session.on_tell = lambda conversation, text: None


def test_the_key_may_be_a_subprotocol_as_browsers_send_it():
    with serving(talkative(), api_key="abc") as served:
        offered = ["realtime", "openai-insecure-api-key.abc", "openai-beta.realtime-v1"]
        opened = served.connect("/realtime", subprotocols=offered)
        assert opened.subprotocol == "realtime"
        with pytest.raises(InvalidStatus):
            served.connect("/realtime", subprotocols=["realtime", "openai-insecure-api-key.wrong"])


def test_the_servers_end_is_an_error_and_a_code():
    with serving(talkative()) as served:
        client = Client(served.connect("/v1/realtime"))
        client.send("response.create")
        client.until("response.created")
        served.server.close()
        error = client.until("error")["error"]
        assert (error["type"], error["code"]) == ("server_error", "conversation_shutdown")
        with pytest.raises(ConnectionClosed) as closed:
            client.until("never")
        assert closed.value.rcvd.code == 1001


def test_a_client_that_never_reads_is_ended(monkeypatch):
    """Its sound waits in the network's buffers, then here, then it is over."""
    monkeypatch.setattr(line_module, "MOST_UNREAD", 20)
    session = FakeSession()
    session.on_step = lambda conversation, pcm: said(np.random.default_rng(0).normal(0, 0.1, FRAME_SAMPLES), 10)
    with serving(session, tokenizer=TOKENIZER) as served:
        deaf = socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1])))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        key = base64.b64encode(bytes(16)).decode()
        deaf.sendall(
            f"GET /v1/realtime HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        time.sleep(0.1)
        text = json.dumps({"type": "input_audio_buffer.append", "audio": "AAAA" * 1280 * 5}).encode()
        header = b"\x81\xfe" + len(text).to_bytes(2, "big") + bytes(4)  # masked with zeros
        ended = lambda: served.session.conversations and not served.session.conversations[0].is_open  # noqa: E731
        deaf.settimeout(0.2)
        until = time.monotonic() + 60
        while not ended():
            assert time.monotonic() < until, served.server.status()
            try:
                deaf.sendall(header + text)
            except OSError:
                time.sleep(0.05)
        deaf.close()
        served.wait_until_free(3.0)


# ---------------------------------------------------------------------------------- without a websocket


class Scene:
    """A session and its frames: p speaks, u speaks, b both, . neither."""

    def __init__(self, detector="server_vad"):
        self.session = Session(SessionSettings("nano", detector=detector), TextPieces(TOKENIZER, PADDING))
        self.at, self.events = 0, []

    def play(self, frames: str) -> list[str]:
        events = []
        for each in frames:
            token = [10, 11, 12][self.at % 3] if each in "pb" else PADDING
            frame = Frame(self.at, LOUD if each in "pb" else QUIET, token, LOUD if each in "ub" else QUIET)
            events += self.session.frame(frame)
            self.at += 1
        self.events += events
        return [event["type"] for event in events if not event["type"].endswith(".delta")]

    def done(self) -> list[tuple]:
        found = [event["response"] for event in self.events if event["type"] == "response.done"]
        return [(each["status"], (each["status_details"] or {}).get("reason")) for each in found]


def test_an_interruption_is_told_once_the_persona_has_given_way():
    scene = Scene()
    told = scene.play("ppppbbbuuuuu......")
    assert scene.done() == [("cancelled", "turn_detected")]
    started = told.index("input_audio_buffer.speech_started")
    assert told[started + 1] == "response.output_audio.done" and told.count("input_audio_buffer.committed") == 1
    assert told.index("response.done") < told.index("input_audio_buffer.speech_stopped")


def test_what_the_user_said_belongs_to_the_turn_in_which_it_was_said():
    scene = Scene()
    scene.play("....uuuuu")
    early = Utterance(0, (Word("Good", 0.4, 0.6),), is_final=True)
    assert scene.session.user_said(early) == [], "its item is not there yet"
    told = scene.play("........")
    name = "conversation.item.input_audio_transcription.completed"
    assert told[-1] == name and scene.events[-1]["transcript"] == "Good"
    item_id = scene.events[-1]["item_id"]
    more = scene.session.user_said(Utterance(1, (Word("morning.", 0.7, 0.9),), is_final=True))
    assert [(event["item_id"], event["transcript"]) for event in more] == [(item_id, "Good morning.")]
    item = scene.session.items.retrieve({"item_id": item_id})["item"]
    assert item["content"] == [{"type": "input_audio", "transcript": "Good morning."}]
    assert scene.session.user_said(Utterance(2, (Word("Hm", 0.0, 0.1),), is_final=True)) == [], "before any turn"
    assert scene.session.user_said(Utterance(3, (), is_final=True)) == []


class Heard:
    """A recogniser that tells one utterance after a second."""

    kind = "stand-in"

    def __init__(self):
        self.frames, self.closed = 0, False

    def listen(self, tell):
        self.tell = tell
        return self

    def push(self, pcm):
        self.frames += 1
        if self.frames == 12:
            self.tell(Utterance(0, (Word("Hello", 0.2, 0.9),), is_final=False))
            self.tell(Utterance(0, (Word("Hello?", 0.2, 0.9),), is_final=True))

    def close(self):
        self.closed = True


@pytest.mark.parametrize("asked", [True, False])
def test_the_users_words_are_written_down_for_a_client_that_asks(served, client, asked):
    client.socket.close()
    served.wait_until_free()
    served.door.recognition = heard = Heard()
    try:
        client = Client(served.connect("/v1/realtime"))
        client.until("session.created")
        wished = {"audio": {"input": {"transcription": {"model": "whisper-1"} if asked else None}}}
        client.send("session.update", session=wished)
        shown = client.until("session.updated")["session"]["audio"]["input"]["transcription"]
        client.append(np.concatenate([LOUD] * 12))
        client.until("response.done")
        told = [event["transcript"] for event in client.events if "input_audio_transcription" in event["type"]]
        client.socket.close()
        served.wait_until_free()
    finally:
        served.door.recognition = None
    assert (shown, told) == (({"model": "stand-in"}, ["Hello?"]) if asked else (None, []))
    assert heard.closed is asked and bool(heard.frames) is asked


def test_a_backchannel_flushes_nothing():
    scene = Scene()
    assert "input_audio_buffer.speech_started" not in scene.play("ppppbbbppppp..........")
    assert scene.done() == [("completed", None)]


def test_without_detection_the_client_says_when_a_turn_is_over():
    scene = Scene(detector=None)
    told = scene.play("uuuuu........pppp..........")
    assert not any(name.startswith("input_audio_buffer") for name in told) and scene.done() == [("completed", None)]
    committed = scene.session.commit(scene.at)
    assert [event["type"] for event in committed] == [
        "input_audio_buffer.committed", "conversation.item.added", "conversation.item.done",
    ]  # fmt: skip


def test_a_cancelled_response_is_not_heard_until_the_persona_pauses():
    scene = Scene()
    scene.play("pppp")
    with pytest.raises(EventError, match="already has an active response"):
        scene.session.create_response(None)
    assert scene.session.cancel_response()[-1]["response"]["status_details"]["reason"] == "client_cancelled"
    assert scene.play("pppppp..........") == []
    assert scene.play("pp..........")[0] == "response.created"
    with pytest.raises(EventError, match="no active response"):
        scene.session.cancel_response()


def test_a_response_that_is_asked_for_again_is_heard_from_there():
    scene = Scene()
    scene.play("pppp")
    scene.session.cancel_response()
    assert scene.session.create_response({"a": "b"})[0]["response"]["metadata"] == {"a": "b"}


def test_a_response_that_was_asked_for_comes_within_eight_seconds_said_or_not():
    scene = Scene()
    scene.play(".")
    scene.session.create_response({"number": "1"})
    first = scene.session.create_response({"number": "2"})
    told = scene.play("." * (NOTHING_SAID_FRAMES + 1))
    assert [event["type"] for event in first] == told == ["response.created", "response.done"]
    assert first[0]["response"]["metadata"] == {"number": "1"}
    done = scene.events[-1]["response"]
    assert (done["status"], done["output"], done["metadata"]) == ("completed", [], {"number": "2"})


def test_what_was_not_heard_is_cut_from_the_transcript():
    scene = Scene()
    scene.play("ppppppp..........")
    item_id = scene.events[-1]["response"]["output"][0]["id"]
    items = scene.session.items
    whole = items.retrieve({"item_id": item_id})["item"]["content"][0]["transcript"]
    assert whole == "Hello Anna. Hello Anna. Hello"
    told = items.truncate({"item_id": item_id, "content_index": 0, "audio_end_ms": 200})
    assert told["audio_end_ms"] == 200
    assert items.retrieve({"item_id": item_id})["item"]["content"][0]["transcript"] == "Hello Anna."
    for wrong in ({"audio_end_ms": -1}, {"audio_end_ms": "x"}, {"audio_end_ms": 5, "content_index": 1}, {}):
        with pytest.raises(EventError):
            items.truncate({"item_id": item_id, **wrong})
    items.delete({"item_id": item_id})
    with pytest.raises(EventError, match="no item"):
        items.retrieve({"item_id": item_id})


def test_items_are_a_chain_and_bounded():
    items = Scene().session.items
    previous = None
    for number in range(600):
        part = {"type": "input_text", "text": "a" * 30_000}
        item, events = items.create({"item": {"type": "message", "role": "user", "id": str(number), "content": [part]}})
        assert events[0]["previous_item_id"] == previous and len(item["content"][0]["text"]) == 20_000
        previous = item["id"]
    assert len(items._items) == 500
    with pytest.raises(EventError, match="already"):
        items.create({"item": {"type": "message", "role": "user", "id": "599"}})
    items.delete({"item_id": "599"})
    output, events = items.create({"item": {"type": "function_call_output", "call_id": "c", "output": "o"}})
    assert events[0]["previous_item_id"] == "598" and output["output"] == "o"
