"""`/api/chat`, as clients of Moshi and PersonaPlex speak it."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pytest
from client_server import MoshiClient, serving
from fake_host import golden_hosted
from fake_session import FRAME_SAMPLES, FakeSession, frame, said
from websockets.exceptions import InvalidStatus

from personaplex.audio.files import read_recording, write_wav
from personaplex.messages import ConversationRequest
from personaplex.personas.presets import persona
from personaplex.protocols.talk import SENTENCES
from personaplex.serving.server import DuplexServer
from personaplex.session.session import Session


@pytest.fixture(scope="module")
def chat():
    with serving(conversations=4) as served:
        yield served


def requests(served) -> list[ConversationRequest]:
    """What the server was asked for from now on."""
    asked = []
    real = served.server.open

    def open(request, listener):
        asked.append(request)
        return real(request, listener)

    served.model.server = SimpleNamespace(open=open)
    return asked


def test_a_frame_comes_back_for_each_that_goes_in(chat):
    client = MoshiClient(chat.connect("/api/chat")).wait_for_handshake()
    client.talk(25)
    assert len(client.sound) == 25 * FRAME_SAMPLES
    assert np.abs(client.sound[4000:]).max() == pytest.approx(0.05, rel=0.3), "the session answers with half of it"
    client.socket.close()
    chat.wait_until_free()


def test_sound_from_before_the_handshake_is_thrown_away():
    session, prepared = FakeSession(), threading.Event()
    session.on_prepare = lambda text, piece: prepared.wait()
    with serving(session) as served:
        client = MoshiClient(served.connect("/api/chat"))
        client.talk_unanswered(20, 0.8)
        assert client.socket.ping().wait(20), "the server has read it all"
        prepared.set()
        client.wait_for_handshake()
        client.talk(5, 0.0)
        heard = session.conversations[0].heard
    assert len(heard) == 5 and np.abs(heard[2:]).max() < 0.01


def test_the_query_says_persona_voice_and_sampling(chat):
    asked = requests(chat)
    query = f"text_prompt={quote('You work for Mars Station and your name is Elena.')}&voice_prompt=nano-m.pt&seed=7"
    query += "&text_temperature=0.5&text_topk=9&audio_temperature=0.6&audio_topk=9999&pad_mult=0&worker_auth_id=1"
    for path in (f"/api/chat?{query}&clean=yes", "/api/chat?text_prompt=", "/bank/api/chat?audio_seed=3", "/api/chat"):
        MoshiClient(chat.connect(path)).wait_for_handshake().socket.close()
    first, bare, bank, default = asked
    assert (first.text, first.voice.name) == ("You work for Mars Station and your name is Elena.", "nano-m")
    sampling = first.sampling
    assert (sampling.seed, sampling.temperature_text, sampling.top_k_text) == (7, 0.5, 9)
    assert (sampling.temperature_audio, sampling.top_k_audio) == (0.6, 250)
    assert first.clean_microphone and not default.clean_microphone
    assert bare.text == "" and (bank.text, bank.sampling.seed) == (persona("bank").nano_prompt, 3)
    assert default.text == persona("teacher").nano_prompt and default.voice.name == "nano-f"
    assert default.sampling.seed != bare.sampling.seed


def test_a_voice_of_another_model_is_replaced(chat, caplog):
    """As in the log; NVIDIA's web client fails at metadata (kind 4) of other fields than the Rust server's."""
    asked = requests(chat)
    with caplog.at_level("INFO"):
        client = MoshiClient(chat.connect("/api/chat?voice_prompt=NATF2.pt")).wait_for_handshake()
    assert asked[0].voice.name == "nano-f" and not client.about
    assert "a client asked for a voice that is not here; it gets the default" in caplog.text
    client.socket.close()


def test_saved_voices_answer_to_their_names_only_if_the_operator_offers_them(tmp_path):
    (tmp_path / "voices").mkdir()
    write_wav(tmp_path / "voices" / "anna.wav", read_recording("voices/nano-f.wav").pcm)
    for home, name in ((tmp_path, "anna"), (None, "nano-f")):
        with serving(home=home) as served:
            asked = requests(served)
            MoshiClient(served.connect("/api/chat?voice_prompt=anna")).wait_for_handshake()
            assert asked[0].voice.name == name


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("seed=x", "seed is 'x'; a number is needed"),
        ("seed=1.5", "seed is 1.5; a whole number is needed"),
        ("seed=-2", "seed is -2"),
        ("audio_temperature=0", "temperature_audio is 0.0; 0.01 to 10"),
        ("text_topk=0", "top_k_text is 0; 1 to 250"),
        ("text_temperature=nan", "temperature_text is nan"),
        ("seed=inf", "a whole number is needed"),
        ("persona=teachr", "did you mean teacher?"),
        ("clean=perhaps", "clean is 'perhaps'"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_websocket_opens(chat, query, says):
    """A client that is accepted and closed with 1000 comes again at once."""
    with pytest.raises(InvalidStatus) as refused:
        chat.connect(f"/api/chat?{query}")
    assert refused.value.response.status_code == 400
    assert says in json.loads(refused.value.response.body)["error"]["message"]


def test_a_character_of_several_tokens_is_sent_whole():
    """`moshi.client` decodes strictly and gives up."""
    pieces = ["\u2581na".encode(), b"\xc3", b"\xaf", b"ve", b"\xff", "\u2581\x1b[2J\n".encode(), b"ok"]
    session = FakeSession()
    session.on_step = lambda conversation, pcm: said(pcm, 100 + len(conversation.heard) - 1)
    with serving(session) as served:
        served.model.tokenizer = SimpleNamespace(
            piece=lambda token: pieces[token - 100] if token - 100 < len(pieces) else None
        )
        client = MoshiClient(served.connect("/api/chat")).wait_for_handshake()
        client.talk(len(pieces) + 1)
        assert client.text == " naïve\ufffd [2J ok"


@pytest.mark.parametrize("reason", ["full", "time", "idle", "failed", "shutdown", "prompt"])
def test_an_end_is_a_sentence_and_a_code_that_is_not_1000(reason):
    session = FakeSession()
    limits = {"waiting": 0, "conversation_sec": 5 if reason == "time" else None}
    with serving(session, **limits) as served:
        if reason in ("time", "idle"):
            changed = {"time": {"conversation_sec": 0.2}, "idle": {"idle_sec": 0.2}}[reason]
            served.server.limits = replace(served.server.limits, **changed)
        if reason == "full":
            MoshiClient(served.connect("/api/chat")).wait_for_handshake()
        query = "?text_prompt=" + quote("a\0b") if reason == "prompt" else ""
        if reason == "prompt":
            session.on_prepare = lambda text, piece: golden_hosted().finder.find("no such voice")
        client = MoshiClient(served.connect(f"/api/chat{query}"))
        if reason not in ("full", "prompt"):
            client.wait_for_handshake()
        if reason == "failed":
            session.on_step = lambda conversation, pcm: 1 / 0
            client.say(frame())
        if reason == "shutdown":
            served.server.close()
        code = client.until_closed()
        expected = {
            "full": (1013, "All 1 places are taken"), "time": (1008, "The time for one conversation is over."),
            "idle": (1008, "No sound came any more."), "failed": (1011, "failed on the server"),
            "shutdown": (1001, "The server is being stopped"), "prompt": (1013, "there is no voice"),
        }[reason]  # fmt: skip
        assert code == expected[0] and expected[1] in client.error and "Press Start" not in client.error
    assert all("Press" not in sentence for sentence in SENTENCES.values())


def test_a_seed_gives_the_same_words_and_sound_again(golden):
    """On a real model: the tiny one."""
    session = Session(golden, slots=1, window="published")
    question = read_recording("tests/golden/user.wav").pcm[: 30 * FRAME_SAMPLES]
    heard = []
    with serving() as served:
        served.server.close()
        served.model.server = served.server = DuplexServer(session, served.server.limits)
        served.model.text_padding_id = golden.config.lm.existing_text_padding_id
        for seed in (5, 5, 6):
            client = MoshiClient(served.connect(f"/api/chat?seed={seed}&text_prompt=&voice_prompt=VOICE"))
            client.wait_for_handshake()
            client.say(question)
            while len(client.sound) < len(question):
                client.listen()
            client.socket.close()
            served.wait_until_free()
            heard.append((client.text, client.sound))
    (text, sound), (again, sound_again), (_, other) = heard
    assert text == again and len(sound) == len(sound_again) == len(other)
    assert len(sound) == len(question)
    assert np.abs(sound - sound_again).max() == 0 < np.abs(sound - other).max()
