"""The behaviour bench's recognisers."""

import pytest
import soxr

from benchmarks.duplex.asr import Recogniser, recogniser
from benchmarks.duplex.speech_activity import speech_spans
from personaplex.errors import InputError
from tests.duplex_bench_model import question, wav
from training import tts

ASKED_SEC = len(question()) / 16_000


def test_words_of_plain_english_with_their_times():
    at_sec = 1.5
    pcm = wav(at_sec, question(), 1.0)
    words = Recogniser().words(pcm, speech_spans(pcm))
    assert "work" in [word.text for word in words]
    assert at_sec - 0.1 < words[0].start_sec and words[-1].end_sec < at_sec + ASKED_SEC + 0.3
    assert all(word.start_sec < word.end_sec for word in words)
    assert not Recogniser().words(wav(2.0), [])


def test_words_of_nanos_world():
    if not tts.available("slt"):
        pytest.skip("flite is not installed: apt install flite")
    listener = recogniser("nano")
    for name in ("Daniel", "Priscilla"):  # one that training knows, one that it does not
        said = tts.speak(f"My name is {name}.", "slt")
        pcm = wav(0.5, soxr.resample(said.pcm, said.sample_rate, 16_000), 0.5)
        heard = [word.text for word in listener.words(pcm, speech_spans(pcm))]
        assert heard[:4] == f"my name is {name.lower()}".split()
        assert len(heard) <= 5  # a breath more may be heard in the silence


def test_a_sentence_that_is_broken_off_is_heard():
    """The agent falls silent when it is interrupted, and a grammar of whole sentences hears nothing then."""
    if not tts.available("slt"):
        pytest.skip("flite is not installed: apt install flite")
    said = tts.speak("I can tell you my name and where I work.", "slt")
    until = int(next(word.start_sec for word in said.words if word.text == "and") * said.sample_rate)
    pcm = wav(0.5, soxr.resample(said.pcm[:until], said.sample_rate, 16_000), 0.5)
    heard = [word.text for word in recogniser("nano").words(pcm, speech_spans(pcm))]
    assert heard == "i can tell you my name".split()


def test_recognisers_by_name():
    assert recogniser("pocketsphinx").name == "pocketsphinx"
    with pytest.raises(InputError, match="pocketsphinx, nano"):
        recogniser("whisper")
