"""The echo canceller before a model: alone, in a served conversation, in a reply."""

import numpy as np
import pytest
from duplex_turns import join, live, serve, turns
from fake_session import Clock, FakeSession, frame, said

from benchmarks.duplex.echo import Echo, EchoPath
from personaplex.audio import cleaning
from personaplex.audio.cleaning import Cleaner
from personaplex.audio.files import read_recording
from personaplex.audio.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ, split_frames
from personaplex.errors import InputError
from personaplex.files import shipped_folder
from personaplex.messages import EndReason, Phase
from personaplex.session.reply import cleaned

PACKAGE = pytest.importorskip(cleaning.PACKAGE, reason=f"no echo canceller here: {cleaning.HOW_TO_GET}")
ECHO = Echo(level_db=-20.0, delay_ms=240.0, room_ms=300.0, seed=1)
SETTLED_SEC = 2.0


def level_db(pcm):
    return 20 * np.log10(np.sqrt(np.mean(np.square(pcm))) + 1e-9)


@pytest.fixture(scope="module")
def voice():
    """8 s of a persona's voice, in frames."""
    folder = shipped_folder("voices", "catalogue.json")
    pcm = np.concatenate([read_recording(path).pcm for path in sorted(folder.glob("nano-*.wav"))])
    return split_frames(pcm[: 8 * SAMPLE_RATE_HZ])


@pytest.fixture(scope="module")
def question():
    return read_recording(shipped_folder("examples", "personas.json") / "questions" / "bank.wav").pcm


def closed_loop(voice, user, cleaner):
    """What a model hears that says ``voice`` into a room: the user and its own echo, cleaned or not."""
    path, heard = EchoPath(ECHO, SAMPLE_RATE_HZ, FRAME_SAMPLES), []
    for spoken, theirs in zip(voice, user, strict=True):
        microphone = theirs + path.next_frame()
        heard.append(microphone if cleaner is None else cleaner.hear(microphone))
        for ear in (path, cleaner):
            if ear is not None:
                ear.said(spoken)
    return np.concatenate(heard)


def test_an_echo_is_taken_out(voice):
    silent = np.zeros_like(voice)
    settled = slice(int(SETTLED_SEC * SAMPLE_RATE_HZ), None)
    loud, quiet = (closed_loop(voice, silent, cleaner)[settled] for cleaner in (None, Cleaner()))
    assert level_db(loud) > -50 and level_db(quiet) < level_db(loud) - 12


def test_a_user_is_left_and_comes_ten_ms_later_at_most(question):
    frames = split_frames(question)
    clean = closed_loop(np.zeros_like(frames), frames, Cleaner())
    spectrum = np.fft.rfft(clean, 2 * len(clean)) * np.conj(np.fft.rfft(frames.reshape(-1), 2 * len(clean)))
    delay_ms = np.argmax(np.fft.irfft(spectrum)[: SAMPLE_RATE_HZ // 20]) / SAMPLE_RATE_HZ * 1000
    assert 0 < delay_ms <= 10
    assert abs(level_db(clean) - level_db(question)) < 3


def test_a_user_is_left_while_the_persona_speaks_and_its_echo_goes_when_they_have_ended(voice, question):
    """The loss of the question in its own echo, and what is left of the echo in the second after it."""
    begins, spoken = 3 * SAMPLE_RATE_HZ, np.concatenate([voice, voice]).reshape(-1)
    user = np.zeros_like(spoken)
    user[begins : begins + len(question)] = question
    heard = closed_loop(split_frames(spoken), split_frames(user), Cleaner())
    late = np.argmax(np.correlate(heard[begins : begins + 2 * SAMPLE_RATE_HZ], question[:SAMPLE_RATE_HZ], "valid"))
    said = heard[begins + late :][: len(question)]
    wrong = said - question * np.dot(said, question) / np.dot(question, question)
    assert late < 0.02 * SAMPLE_RATE_HZ and level_db(said) > level_db(question) - 3
    assert level_db(wrong) < level_db(question) - 9
    after = heard[begins + len(question) + SAMPLE_RATE_HZ :][: 2 * SAMPLE_RATE_HZ]
    assert level_db(after) < level_db(closed_loop(voice, np.zeros_like(voice), None)) - 12


def test_rumble_is_taken_out():
    draw = np.random.default_rng(0)
    count = 25 * FRAME_SAMPLES
    slow = np.sin(2 * np.pi * 20 * np.arange(count) / SAMPLE_RATE_HZ) + 0.01 * draw.standard_normal(count)
    frames = split_frames((0.1 * slow).astype(np.float32))
    clean = closed_loop(np.zeros_like(frames), frames, Cleaner())
    half = len(clean) // 2
    assert level_db(clean[half:]) < level_db(slow[half:] * 0.1) - 12


def test_an_echo_path_is_the_same_in_pieces_and_whole(voice):
    path, pieces = EchoPath(ECHO, SAMPLE_RATE_HZ, FRAME_SAMPLES), []
    for spoken in voice[:20]:
        pieces.append(path.next_frame())
        path.said(spoken)
    whole = np.convolve(voice[:20].reshape(-1), ECHO.response(SAMPLE_RATE_HZ))[: 20 * FRAME_SAMPLES]
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-5)
    assert level_db(whole[SAMPLE_RATE_HZ:]) - level_db(voice[:20]) == pytest.approx(-20, abs=4)


def test_a_served_conversation_takes_its_own_echo_out(voice):
    """The model says one frame after another; the microphone brings them back three frames later, a tenth as loud."""
    session = FakeSession()
    spoken = iter(voice)
    session.on_step = lambda conversation, pcm: said(next(spoken), 3)
    server = serve(Clock(), session)
    handle, notes = live(server, clean_microphone=True)
    for number in range(len(voice)):
        handle.push(0.1 * voice[number - 3] if number >= 3 else frame(0.0))
        turns(server, 1)
    heard = np.concatenate([heard for _, heard, _ in notes.frames][40:])
    assert level_db(heard) < level_db(0.1 * voice[37:]) - 12


def test_without_the_package_a_conversation_is_refused_and_the_next_one_is_let_in(monkeypatch):
    monkeypatch.setattr(cleaning, "can_clean", lambda: False)
    server = serve(Clock(), FakeSession())
    _, notes = join(server, clean_microphone=True)
    turns(server)
    assert notes.last.phase is Phase.ENDED and notes.last.reason is EndReason.REFUSED
    assert "requirements-cleaning.txt" in notes.last.message
    live(server)
    with pytest.raises(InputError, match="requirements-cleaning"):
        Cleaner()


def test_a_recording_made_beside_a_loudspeaker(voice, question):
    """What the loudspeaker played is given, and taken out; the user's own words stay."""
    played = voice.reshape(-1)
    echo = np.convolve(played, ECHO.response(SAMPLE_RATE_HZ))[: len(played)].astype(np.float32)
    settled = slice(int(SETTLED_SEC * SAMPLE_RATE_HZ), None)
    clean = cleaned(echo, played, SAMPLE_RATE_HZ, FRAME_SAMPLES)
    assert clean.shape == echo.shape and level_db(clean[settled]) < level_db(echo[settled]) - 12
    assert abs(level_db(cleaned(question, None, SAMPLE_RATE_HZ, FRAME_SAMPLES)) - level_db(question)) < 3
