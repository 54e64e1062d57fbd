"""What a conversation leaves behind: files, and that they go with their visitor."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from personaplex.text.tokenizer import TextTokenizer
from personaplex.text.transcript import Transcript
from personaplex.web.exports import export
from personaplex.web.visits import Visits

RATE_HZ = 24_000
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def transcript() -> Transcript:
    tokenizer = TextTokenizer(GOLDEN / "tokenizer_spm_32k_3.model")
    spoken = Transcript(tokenizer)
    for frame, token in enumerate([3, 3, *tokenizer.encode("hello there"), 3, 3]):
        spoken.push(token, frame)
    return spoken


def tone(hz: float, seconds: float) -> np.ndarray:
    return (0.2 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


# --- files


def test_the_persona_is_left_and_the_visitor_right(tmp_path, transcript):
    agent, user = tone(300, 2.0), tone(700, 1.5)
    files = export(tmp_path, "conversation", transcript, agent, user)
    both, rate_hz = soundfile.read(files.stereo, dtype="float32")
    assert rate_hz == RATE_HZ and both.shape == (len(agent), 2)
    np.testing.assert_allclose(both[:, 0], agent, atol=1 / 32_768)
    np.testing.assert_allclose(both[: len(user), 1], user, atol=1 / 32_768)
    assert not both[len(user) :, 1].any()
    alone, _ = soundfile.read(files.answer, dtype="float32")
    np.testing.assert_allclose(alone, agent, atol=1 / 32_768)


def test_the_transcript_in_three_formats(tmp_path, transcript):
    files = export(tmp_path, "conversation", transcript)
    assert files.transcript_text.read_text() == "hello there\n"
    data = json.loads(files.transcript_json.read_text())
    assert data["text"] == "hello there"
    assert [chunk["text"] for chunk in data["chunks"]] == ["hello", "there"]
    assert files.transcript_webvtt.read_text().startswith("WEBVTT\n\n00:00:00.160 --> ")
    assert [path.suffix for path in files.transcripts] == [".txt", ".json", ".vtt"]


def test_without_sound_there_are_words_only(tmp_path, transcript):
    files = export(tmp_path, "conversation", transcript)
    assert (files.answer, files.stereo, files.picture) == (None, None, None)
    assert len(list(tmp_path.iterdir())) == 3
    nothing = np.zeros(0, np.float32)
    assert export(tmp_path, "conversation", transcript, nothing, nothing).stereo is None


def test_the_picture_is_one(tmp_path, transcript):
    files = export(tmp_path, "conversation", transcript, tone(300, 1), tone(300, 1))
    assert files.picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "", "ü", "a" * 300])
def test_a_name_never_leads_out_of_the_folder(tmp_path, transcript, name):
    folder = tmp_path / "here"
    folder.mkdir()
    files = export(folder, name, transcript)
    assert all(path.parent == folder for path in files.transcripts)
    assert list(tmp_path.iterdir()) == [folder]


# --- visits


@pytest.fixture
def visits(tmp_path) -> Visits:
    return Visits(tmp_path / "uploads" / "visits")


def test_what_a_visitor_left_goes_with_them(visits, tmp_path):
    upload = tmp_path / "uploads" / "abc" / "voice.wav"
    upload.parent.mkdir(parents=True)
    upload.write_bytes(b"sound")
    folder = visits.new_folder("anna", "talk")
    (folder / "both.wav").write_bytes(b"sound")
    visits.own_upload("anna", upload)
    other = visits.new_folder("bert", "talk")
    visits.end("anna")
    assert not folder.exists() and not folder.parent.exists() and not upload.exists()
    assert other.exists() and len(visits) == 1


def test_a_new_conversation_replaces_the_one_before(visits):
    first = visits.new_folder("anna", "talk")
    second = visits.new_folder("anna", "talk")
    assert first != second and not first.exists() and second.exists()


def test_folders_cannot_be_guessed(visits):
    assert len(visits.new_folder("anna", "talk").name) == 16
    assert "anna" not in str(visits.new_folder("anna", "talk"))


def test_a_file_elsewhere_is_never_deleted(visits, tmp_path):
    mine = tmp_path / "mine.wav"
    mine.write_bytes(b"sound")
    visits.own_upload("anna", mine)
    visits.own_upload("anna", tmp_path / "uploads" / ".." / "mine.wav")
    visits.end("anna")
    assert mine.exists()


def test_an_example_that_a_visitor_took_stays_for_the_next_one(tmp_path):
    """A page serves its examples from the folder of uploads: deleting "the visitor's file" took it from everyone."""
    example, served = tmp_path / "bank.wav", tmp_path / "uploads" / "abc" / "bank.wav"
    served.parent.mkdir(parents=True)
    for path in (example, served):
        path.write_bytes(b"question")
    visits = Visits(tmp_path / "uploads" / "visits", everyones=[example])
    visits.own_upload("anna", served)
    visits.end("anna")
    assert served.exists()


def test_a_file_that_two_visitors_sent_goes_with_the_last(visits, tmp_path):
    upload = tmp_path / "uploads" / "abc" / "voice.wav"
    upload.parent.mkdir(parents=True)
    upload.write_bytes(b"sound")
    visits.own_upload("anna", upload)
    visits.own_upload("bert", upload)
    visits.end("anna")
    assert upload.exists()
    visits.end("bert")
    assert not upload.exists()


def test_a_conversation_is_handed_out_once(visits):
    visits.keep("anna", "talk", "said")
    assert visits.take("bert", "talk") is None
    assert visits.take("anna", "talk") == "said"
    assert visits.take("anna", "talk") is None


def test_the_tabs_of_a_page_replace_only_their_own(visits):
    talk, answer = visits.new_folder("anna", "talk"), visits.new_folder("anna", "file")
    visits.keep("anna", "talk", "said")
    visits.new_folder("anna", "file")
    assert talk.exists() and not answer.exists()
    assert visits.take("anna", "file") is None and visits.take("anna", "talk") == "said"
    visits.end("anna")
    assert not talk.exists()


class Clock:
    now_sec = 0.0

    def __call__(self) -> float:
        return self.now_sec


def test_what_was_left_goes_when_the_page_is_silent_for_long(tmp_path):
    """A broken connection is no leaving: a telephone that slept found its own voice deleted under an open page."""
    clock = Clock()
    visits = Visits(tmp_path / "visits", silent_sec=600.0, clock=clock)
    folder, gone = visits.new_folder("anna", "talk"), visits.new_folder("bert", "talk")
    for _ in range(20):
        clock.now_sec += 60.0
        visits.seen("anna")
        visits.sweep()
    assert folder.exists() and not gone.exists() and len(visits) == 1
    clock.now_sec += 601.0
    visits.sweep()
    assert not folder.exists() and len(visits) == 0


def test_it_is_swept_without_anybody_asking(tmp_path):
    visits = Visits(tmp_path / "visits", silent_sec=0.1)
    folder = visits.new_folder("anna", "talk")
    until = time.monotonic() + 20.0
    while folder.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not folder.exists() and len(visits) == 0


def test_who_left_nothing_is_not_remembered(visits):
    visits.seen("anna")
    assert len(visits) == 0


def test_ending_everything(visits):
    folders = [visits.new_folder(name, "talk") for name in ("anna", "bert")]
    visits.end_all()
    assert len(visits) == 0 and not any(folder.exists() for folder in folders)
    visits.end("nobody")
