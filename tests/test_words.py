"""The user's words: turns, the recogniser's process, both sides in one transcript, what the page makes of them."""

import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from fake_session import said
from handler_call import Call, page, quicken, run, until

from benchmarks import user_words
from personaplex.audio.files import read_recording
from personaplex.audio.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ, split_frames
from personaplex.errors import ConfigError, InputError
from personaplex.files import shipped_folder
from personaplex.messages import ConversationRequest
from personaplex.settings import Settings
from personaplex.text.dialogue import Dialogue, lines_of
from personaplex.text.transcript import Word
from personaplex.web.exports import export
from personaplex.web.html import transcript_html
from personaplex.words import hearing, models, recogniser
from personaplex.words.hearing import Recognition
from personaplex.words.turns import LONGEST_SEC, TurnFinder

RATE_HZ = recogniser.RATE_HZ
HERE = Path(__file__).parent
WITHIN_SEC = 90  # on a busy machine; usually two


def tone(seconds, rate_hz=RATE_HZ, loud=0.3):
    return (loud * np.sin(2 * np.pi * 300 * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def silence(seconds, rate_hz=RATE_HZ):
    return np.zeros(round(seconds * rate_hz), np.float32)


def turns_of(pcm, chunk=1280):
    finder = TurnFinder(RATE_HZ)
    found = [turn for at in range(0, len(pcm), chunk) for turn in finder.push(pcm[at : at + chunk])]
    return [*found, *finder.flush()]


# ---------------------------------------------------------------------------------- turns


def test_a_turn_ends_with_silence_and_a_pause_is_within_it():
    pcm = np.concatenate([silence(1), tone(1), silence(0.4), tone(0.5), silence(2), tone(0.6), silence(0.2)])
    first, second = turns_of(pcm)
    assert first.start_sec == pytest.approx(0.7, abs=0.05) and second.start_sec == pytest.approx(4.6, abs=0.05)
    assert len(first.pcm) / RATE_HZ == pytest.approx(0.3 + 1.9 + 0.7, abs=0.1)
    at = round(first.start_sec * RATE_HZ)
    assert (first.pcm == pcm[at : at + len(first.pcm)]).all()


def test_clicks_and_steady_noise_are_no_turns():
    click = silence(3)
    click[RATE_HZ : RATE_HZ + 300] = 0.5
    assert turns_of(click) == []
    noise = 0.02 * np.random.default_rng(0).standard_normal(20 * RATE_HZ).astype(np.float32)
    found = turns_of(noise)
    assert len(found) == 1 and len(found[0].pcm) < 7 * RATE_HZ  # until the room is known


def test_a_stream_may_begin_with_speech():
    (turn,) = turns_of(np.concatenate([tone(0.7), silence(1)]))
    assert turn.start_sec == 0 and len(turn.pcm) / RATE_HZ == pytest.approx(1.4, abs=0.05)


def test_a_turn_without_end_is_cut():
    assert len(turns_of(np.concatenate([silence(1), np.tile(tone(0.9), 1), *[tone(1), silence(0.2)] * 30]))) == 2
    assert LONGEST_SEC < 30  # of sound, which is what Whisper takes at once


# ---------------------------------------------------------------------------------- the process


@pytest.fixture
def recognition(monkeypatch):
    """A recogniser's process with a stand-in for the model."""
    real = subprocess.Popen

    def started(command, **more):
        more["env"] = {**more["env"], "PYTHONPATH": f"{more['env']['PYTHONPATH']}:{HERE.parent}"}
        return real([sys.executable, "-m", "tests.stand_in_recogniser", command[-1]], **more)

    monkeypatch.setattr(hearing.subprocess, "Popen", started)
    recognition = Recognition("moonshine")
    yield recognition
    recognition.close()


def test_words_of_two_conversations_with_their_times(recognition):
    """Each has its own words, told as they come; times are from its own first frame."""
    told, came = [], threading.Event()

    def tell(utterance):
        told.append(utterance)
        came.set()

    first, second = recognition.listen(tell), recognition.listen()
    for pcm, heard in ((tone(1.0, SAMPLE_RATE_HZ), first), (tone(0.5, SAMPLE_RATE_HZ), second)):
        whole = [silence(0.8, SAMPLE_RATE_HZ), pcm, silence(1.6, SAMPLE_RATE_HZ)]
        for frame in split_frames(np.concatenate(whole)):
            heard.push(frame)
    assert came.wait(WITHIN_SEC) and told[0].is_final  # before the end
    for heard in (first, second):
        heard.finish()
        assert heard.wait(WITHIN_SEC)
    assert [word.text for word in first.words] == ["10"] and [word.text for word in second.words] == ["5"]
    assert first.words[0].start_sec == pytest.approx(0.8, abs=0.05) and told[0].words == tuple(first.words)
    assert [word.text for word in recognition.words_of(tone(0.7, SAMPLE_RATE_HZ), WITHIN_SEC)] == ["7"]


def test_a_recogniser_that_dies_leaves_conversations_alone(recognition, caplog):
    heard = recognition.listen()
    with caplog.at_level(logging.WARNING):
        recognition._process.kill()
        assert heard.wait(WITHIN_SEC)
    heard.push(np.zeros(FRAME_SAMPLES, np.float32))
    heard.finish()
    assert heard.words == [] and recognition.listen().wait(1)
    recognition._process.wait(10)


def test_sound_is_never_waited_for(recognition, monkeypatch):
    """Of what comes while two minutes wait there are no words; the call returns at once."""
    monkeypatch.setattr(hearing, "LONGEST_BACKLOG", 0)
    heard = recognition.listen()
    heard.push(tone(1.0, SAMPLE_RATE_HZ))
    heard.finish()
    assert heard.wait(WITHIN_SEC) and heard.words == []


def test_nothing_that_was_said_is_logged(recognition, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        words = recognition.words_of(tone(0.7, SAMPLE_RATE_HZ), WITHIN_SEC)
    assert words and not any("7" in record.getMessage() for record in caplog.records)
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------------------- which one runs


def test_which_recogniser_runs_here(monkeypatch):
    monkeypatch.setattr(recogniser, "available", lambda: ("moonshine", "whisper"))
    assert recogniser.chosen("auto") == "moonshine" and recogniser.chosen("whisper") == "whisper"
    assert recogniser.chosen("off") is None
    monkeypatch.setattr(recogniser, "available", lambda: ())
    assert recogniser.chosen("auto") is None
    with pytest.raises(InputError, match="requirements-words"):
        recogniser.chosen("whisper")
    with pytest.raises(ConfigError, match="auto, moonshine, whisper, off"):
        Settings(user_words="parakeet")


@pytest.mark.parametrize("kind", ["moonshine", "whisper"])
def test_a_real_recogniser_hears_a_question(kind):
    if kind not in recogniser.available():
        pytest.skip(f"{kind} is not installed: {recogniser.HOW_TO_GET}")
    pcm = read_recording(shipped_folder("examples", "personas.json") / "questions" / "bank.wav", sample_rate_hz=RATE_HZ)
    model = models.load(kind)
    ear = model.listen()
    for frame in split_frames(np.concatenate([silence(1), pcm.pcm, silence(1.5)]), 1280):
        ear.hear(frame)
    found = list(ear.finish())
    assert [utterance.text.lower() for utterance in found if utterance.is_final] == ["who do you work for?"]
    assert 0.6 < found[0].words[0].start_sec < 1.6 and "work" in model.words(pcm.pcm)


# ---------------------------------------------------------------------------------- both sides


class Said:
    """A transcript that is there already."""

    def __init__(self, *words):
        self.words = list(words)
        self.text = " ".join(word.text for word in words)

    def to_dict(self):
        return {
            "text": self.text,
            "chunks": [{"text": w.text, "timestamp": [w.start_sec, w.end_sec]} for w in self.words],
        }

    def to_webvtt(self):
        return "WEBVTT\n"


AGENT = Said(Word("My", 2.0, 2.2), Word("name", 2.3, 2.6), Word("Sorry.", 6.5, 6.9))
USER = (
    Word("Who", 0.5, 0.7),
    Word("are", 0.8, 0.9),
    Word("you?", 1.0, 1.3),
    Word("Stop", 2.5, 2.9),
    Word("<b>", 3.0, 3.1),
)


def test_an_interruption_is_in_the_order_in_which_it_was_said():
    assert [(line.speaker, line.text) for line in lines_of(AGENT.words, USER)] == [
        ("You", "Who are you?"), ("Persona", "My name"), ("You", "Stop <b>"), ("Persona", "Sorry."),
    ]  # fmt: skip


def test_both_sides_as_text_json_and_webvtt():
    both = Dialogue(AGENT, USER)
    assert both.to_text().splitlines() == ["You: Who are you?", "Persona: My name", "You: Stop <b>", "Persona: Sorry."]
    told = json.loads(both.to_json())
    assert told["text"] == "My name Sorry." and told["user"]["text"] == "Who are you? Stop <b>"
    assert told["user"]["chunks"][0] == {"text": "Who", "timestamp": [0.5, 0.7]}
    vtt = both.to_webvtt()
    assert vtt.startswith("WEBVTT\n\n00:00:00.500 --> 00:00:01.300\n<v You>Who are you?\n\n00:00:02.000")
    assert "<v Persona>My name" in vtt and "<v You>Stop &lt;b&gt;" in vtt


def test_without_a_recogniser_the_files_are_as_before():
    alone = Dialogue(AGENT)
    assert alone.to_text() == "My name Sorry.\n" and alone.to_webvtt() == "WEBVTT\n"
    assert "user" not in alone.to_dict() and Dialogue(AGENT, ()).to_dict()["user"]["text"] == ""


def test_the_page_tells_the_sides_apart():
    html = transcript_html(AGENT.words, USER, live=True)
    assert html.count('<b class="who">You:</b>') == 2 and html.count('<b class="who">Persona:</b>') == 2
    assert '<p class="you">' in html and "&lt;b&gt;" in html and html.count('class="now"') == 1
    assert html.index("Who") < html.index("name") < html.index("Stop") < html.index("Sorry")
    assert "who" not in transcript_html(AGENT.words)
    assert "nothing yet" in transcript_html([], [], empty="nothing yet")


def test_the_files_of_a_conversation_have_both_sides(tmp_path):
    sound = tone(7, SAMPLE_RATE_HZ)
    files = export(tmp_path, "conversation", AGENT, sound, sound, USER)
    assert "You: Who are you?" in files.transcript_text.read_text()
    assert files.picture_html.count("Who") and files.picture_html.count("name")


# ---------------------------------------------------------------------------------- in a call, and its measure


def test_the_page_is_told_the_users_words_and_the_record_has_the_last_of_them(monkeypatch):
    quicken(monkeypatch)

    class Heard:
        words, pushed, is_finished = [], [], False

        def push(self, pcm):
            self.pushed.append(pcm)

        def finish(self):
            self.is_finished = True
            self.words = [*self.words, Word("late", 1.0, 1.2)]

        def wait(self, timeout_sec):
            return self.is_finished

    heard = Heard()

    class Recognising:
        def listen(self, tell):
            self.tell = tell
            return heard

    def asked(values):
        return ConversationRequest(write_user_words=True)

    async def scene():
        recognition = Recognising()
        call = await Call(recognition=recognition, read_settings=asked).live()
        call.server.say(said(np.zeros(FRAME_SAMPLES)), heard=0.25)
        await until(lambda: heard.pushed)
        heard.words = [Word("early", 0.1, 0.3)]
        recognition.tell(None)
        while not (shown := page(await call.next()).user_words):
            pass
        await call.handler.shutdown()
        return call, shown

    call, shown = run(scene())
    assert [word.text for word in shown] == ["early"] and (heard.pushed[0] == 0.25).all()
    assert [word.text for word in call.records[0].user_words(1.0)] == ["early", "late"]


def test_a_delay_runs_from_a_words_end_to_when_it_is_there_for_good():
    """A guess ahead of the speaker that was taken back once counted as a word, and the median was nought."""
    one, two, three, guess = (
        Word("One", 10.0, 10.4),
        Word("two", 10.5, 11),
        Word("tree", 11.2, 11.4),
        Word("too", 10.5, 11),
    )
    seen = user_words.Seen(
        counts=[(5.0, []), (10.3, [guess, one]), (10.9, [one, guess]), (11.3, [one, guess]), (12.0, [one, two, three])]
    )
    said = [Word("one,", 0.0, 10.4), Word("two", 0.5, 11.0), Word("three", 1.2, 11.5)]
    assert seen.delays_sec(said, 10.0, 12.0) == pytest.approx([0.0, 1.0])
    assert seen.delays_sec(said, 20.0, 22.0) == []
