"""The recipe's speech: pauses, microphones, loudness, voices and the synthesisers' processes."""

import dataclasses
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy import signal

from training import listen, speech, tts, users
from training.lm import clips
from training.tts_engines import FestivalEngine


def test_a_hesitating_user_says_the_same_words_later():
    words = (tts.Word("What", 0.1, 0.3), tts.Word("is", 0.3, 0.5), tts.Word("it?", 0.5, 0.9))
    plain = tts.Utterance(np.ones(speech.SAMPLE_RATE_HZ, np.float32), speech.SAMPLE_RATE_HZ, (), words)
    for seed in range(10):
        said = users.hesitating(random.Random(seed), plain)
        silent = np.flatnonzero(said.pcm == 0)
        pause_sec = len(silent) / speech.SAMPLE_RATE_HZ
        assert [word.text for word in said.words] == ["What", "is", "it?"]
        assert users.HESITATION_SEC[0] - 0.01 <= pause_sec <= users.HESITATION_SEC[1]
        moved = [word for word, before in zip(said.words, plain.words, strict=True) if word != before]
        assert 1 <= len(moved) <= 2
        assert moved[0].start_sec == pytest.approx((silent[-1] + 1) / speech.SAMPLE_RATE_HZ, abs=0.001)


def test_who_thinks_in_the_middle_of_a_sentence_says_both_halves(monkeypatch):
    monkeypatch.setattr(users, "THINKING_SHARE", 1.0)
    rate = speech.SAMPLE_RATE_HZ

    def half(first: str, second: str) -> tts.Utterance:
        """Spoken from 0.1 to 0.6 s, of a second."""
        words = (tts.Word(first, 0.1, 0.3), tts.Word(second, 0.3, 0.6))
        return tts.Utterance(np.ones(rate, np.float32), rate, (), words)

    for seed in range(10):
        said = users.thinking(random.Random(seed), half("Tell", "me,"), half("who", "it is."))
        silent = np.flatnonzero(said.pcm == 0)
        assert users.HESITATION_SEC[0] - 0.01 <= len(silent) / rate <= users.HESITATION_SEC[1]
        assert [word.text for word in said.words] == ["Tell", "me,", "who", "it is."]
        assert said.words[0].start_sec == pytest.approx(tts.TRIM_LEAD_SEC)
        assert said.words[1].end_sec == pytest.approx(silent[0] / rate - tts.TRIM_TAIL_SEC, abs=0.001)
        assert said.words[2].start_sec == pytest.approx((silent[-1] + 1) / rate + tts.TRIM_LEAD_SEC, abs=0.001)
        assert said.words[3].end_sec == pytest.approx(len(said.pcm) / rate - tts.TRIM_TAIL_SEC, abs=0.001)


@pytest.mark.parametrize("pole", [0.0, 0.95])
def test_noise_is_as_loud_as_asked_beside_the_speech(pole):
    rng = np.random.default_rng(0)
    spoken = np.sin(np.arange(2 * speech.SAMPLE_RATE_HZ) * 0.05) * 0.2
    user = dataclasses.replace(users.random_user(random.Random(0)), channel="flat", gain_db=-6.0, noise_pole=pole)
    clean = users.through_microphone(spoken, dataclasses.replace(user, snr_db=None), rng)
    noisy = users.through_microphone(spoken, dataclasses.replace(user, snr_db=10.0), rng)
    snr_db = 20 * np.log10(np.std(clean) / np.std(noisy - clean))
    assert snr_db == pytest.approx(10.0, abs=0.6)


def test_a_telephone_line_keeps_loud_and_soft():
    pcm = np.linspace(-1, 1, 1001)
    heard = users.through_mu_law(pcm)
    assert len(np.unique(heard)) <= 255
    assert np.abs(heard - pcm).max() < 0.03 and np.abs(heard - pcm)[np.abs(pcm) < 0.01].max() < 0.001


def test_festival_says_it_again_where_it_died(monkeypatch, tmp_path):
    """One sentence in some thousands ended an hour of speaking. A festival that dies at its first two sentences."""
    program, deaths, rate = tmp_path / "festival", tmp_path / "deaths", 16_000
    program.write_text(
        f"#!/bin/sh\nwhile read line; do case $line in\n*voice.list*) echo voices ked_diphone;;\n"
        f"*utt.synth*) echo x >> {deaths}; [ $(wc -l < {deaths}) -le $LIVES ] && exit 1;\n"
        "echo phone hh 0.1; echo phone pau 0.4; echo; echo word Hi. 0.0 0.0; echo said;;\nesac; done\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(program))
    monkeypatch.setenv("LIVES", "2")
    engine = FestivalEngine()
    soundfile.write(Path(engine._folder.name) / "said.wav", np.ones(rate, np.float32), rate)
    try:
        engine.require("ked")
        prosody = dict(tempo=1.0, pitch_hz=None, pitch_range=1.0)
        said = engine.speak("Hi.", "ked", **prosody)
        assert len(deaths.read_text().split()) == 3
        assert said.words == [("Hi.", 0.0, 0.1)] and len(said.pcm) == rate
        engine._process.kill()  # between two sentences
        engine._process.wait()
        assert engine.speak("Hi.", "ked", **prosody).words == said.words
        monkeypatch.setenv("LIVES", "100")
        engine._process.kill()
        with pytest.raises(tts.TtsError, match="festival stopped at 'Hi.'"):
            engine.speak("Hi.", "ked", **prosody)
    finally:
        engine._process.kill()


def test_one_short_word_has_a_loudness_too():
    """A hasty "Bye." of a third of a second ended a whole evaluation."""
    word = 0.2 * np.sin(np.arange(speech.SAMPLE_RATE_HZ // 3) * 0.05).astype(np.float32)
    levelled = speech.at_loudness(word)
    assert len(levelled) == len(word)
    assert speech.at_loudness(0.5 * word) == pytest.approx(levelled, rel=1e-3, abs=1e-6)


def test_voices_are_told_apart_by_their_spectrum():
    """Two made-up timbres, whatever their loudness."""
    rng = np.random.default_rng(0)

    def noise(smoothness: float) -> np.ndarray:
        return signal.lfilter([0.1], [1, -smoothness], rng.standard_normal(24_000))

    timbres = listen.Timbres({"dull": [noise(0.95) for _ in range(3)], "bright": [noise(0.0) for _ in range(3)]})
    for name, smoothness in (("dull", 0.95), ("bright", 0.0)):
        assert timbres.nearest(noise(smoothness)) == timbres.nearest(0.3 * noise(smoothness)) == name


def test_a_silent_user_sounds_like_the_end_of_their_recording():
    """A stream of two sentences: what follows each is the codec's forgetting of speech, as long as there is any."""
    codes = np.tile(np.arange(100), (8, 1))
    said = [
        dict(kind="name", text="Who is it?", start_sec=at, end_sec=at + 0.76, words=[["Who", at]], slots={})
        for at in (0.0, 1.6)
    ]
    session = clips._user_session(codes, dict(clips=said, end_sec=2.36))
    for clip, sounded in zip(session.clips, (10, 30), strict=True):
        assert clip.codes[0, -1 - clip.tail] == sounded - 1
        assert clip.quiet[0, 0] == 30 + clip.tail and clip.quiet[0, -1] == 99
    assert session.opening is None
    assert list(session.background[0]) == list(range(30 + clips.FORGOTTEN_FRAMES, 100))
