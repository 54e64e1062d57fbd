"""Recordings of people: what is read, what is left out, what is kept for tests; and what a codec is trained on."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import soundfile

from training import kept_out, people, people_speech, surroundings
from training.codec.material import Corpus, Piece, pieces_of_people
from training.codec.speech import UNKNOWN_PHONE

RATE_HZ = 16_000


def _write(path, seconds=0.5, level=0.3):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = level * np.sin(np.arange(int(seconds * RATE_HZ)) * 0.1)
    soundfile.write(path, wave.astype(np.float32), RATE_HZ)
    return path


@pytest.fixture
def folder(tmp_path):
    """Some recordings of each set, as their repositories have them."""
    for name in sorted(kept_out.cafe_recordings())[:2]:
        _write(tmp_path / "cafe/data/speech/clean" / name)
    _write(tmp_path / "cafe/data/speech/clean/ffffffff-somebody-else.wav")
    labels = tmp_path / "cafe/data/label/label.json"
    labels.parent.mkdir(parents=True)
    labels.write_text(json.dumps({"a.wav": {"intent": "orderDrink", "slots": {"size": "large"}}}))
    for name in ("arctic_a0001_1", "arctic_a0001_2", "arctic_a0002_3", "arctic_b0539_4", "arctic_b0539_5"):
        _write(tmp_path / f"arctic/data/{name}.wav", 1.0).with_suffix(".txt").write_text(f"Said in {name}.\n")
    for reader in range(10, 22):
        _write(tmp_path / f"librispeech/audio_data/librispeech_train-clean-100/{reader}-1-0000.flac")
    _write(tmp_path / "librispeech/audio_data/librispeech_test-other/367/367-130732-0000.flac")
    for part, speaker, age in (("train", "0001", 30), ("test", "0002", 9)):
        lists = tmp_path / "speechocean" / part
        _write(tmp_path / f"speechocean/WAVE/{speaker}.WAV")
        lists.mkdir()
        for name, value in {"wav.scp": f"WAVE/{speaker}.WAV", "text": "MARK IS", "utt2spk": speaker}.items():
            (lists / name).write_text(f"u{speaker}\t{value}\n")
        (lists / "spk2age").write_text(f"{speaker}\t{age}\n")
    return tmp_path


def _names(found, group):
    return [recording.path.stem for recording in found if recording.group == group]


def test_sets_are_read_and_tests_kept_apart(folder, monkeypatch):
    monkeypatch.setattr(kept_out, "ARCTIC_SEC", 0.9)
    trained, kept = (people.recordings(folder, kept=value) for value in (False, True))
    assert _names(trained, "cafe") == ["ffffffff-somebody-else"] and len(_names(kept, "cafe")) == 2
    assert _names(trained, "arctic") == ["arctic_a0001_1", "arctic_a0001_2", "arctic_a0002_3"]
    assert _names(kept, "arctic") == ["arctic_b0539_4", "arctic_b0539_5"]  # another reading of the same sentence, too
    assert _names(kept, "librispeech") == ["14-1-0000", "19-1-0000"] and len(_names(trained, "librispeech")) == 10
    assert _names(kept, "librispeech-other") == ["367-130732-0000"]
    assert [recording.text for recording in trained if recording.group == "speechocean"] == ["mark is"]  # no children
    assert people.cafe_slots(folder / "cafe") == {"a.wav": {"size": "large"}}
    assert not people.recordings(folder / "nowhere", kept=False)


def test_what_is_kept_is_refused(folder):
    with pytest.raises(kept_out.KeptOutError, match=r"367-130732-0000\.flac of librispeech-other is kept for tests"):
        people.refuse_kept(people.recordings(folder, kept=True, sets=("librispeech",))[-1:])
    people.refuse_kept(people.recordings(folder, kept=False))


def test_a_fifth_of_the_cafe_is_kept():
    assert 100 <= len(kept_out.cafe_recordings()) <= 140
    assert all(name.endswith(".wav") for name in kept_out.cafe_recordings())


def test_silence_around_speech_is_cut():
    quiet = np.zeros(24_000, np.float32)
    speech = np.full(12_000, 0.5, np.float32)
    assert len(people.trimmed(np.concatenate([quiet, speech, quiet]))) == 12_000 + 2_400 + 4_800 - 1
    assert not len(people.trimmed(quiet))
    assert people.sounding_level(np.concatenate([quiet, speech])) == pytest.approx(0.5)
    assert people.sounding_level(quiet) == 0.0


def test_material_is_at_one_level_with_phones_where_they_are_known(folder, tmp_path):
    out = tmp_path / "corpus"
    with Corpus(out, seed=1) as corpus:
        for piece in pieces_of_people(folder, {"librispeech": 0.02}, seed=1):
            corpus.add(piece)
        corpus.numbers["aa"] = 1
        corpus.add(Piece("hibari", np.full(960, 0.5, np.float32), np.array([1, 0], np.uint8)))
        corpus.add(Piece("silence", np.zeros(960, np.float32), None))
    pcm, labels = np.fromfile(out / "pcm.i16", np.int16), np.fromfile(out / "phones.u8", np.uint8)
    assert len(pcm) == 480 * len(labels)
    assert json.loads((out / "phones.json").read_text()) == ["pau", "aa"]
    parts = json.loads((out / "parts.json").read_text())
    assert parts["librispeech"] == pytest.approx(0.02, abs=0.01) and "silence" not in parts
    known = np.flatnonzero(labels != UNKNOWN_PHONE)
    assert labels[known[:2]].tolist() == [1, 0]
    assert np.abs(pcm[480 * known[0] : 480 * known[0] + 960]).mean() == pytest.approx(0.08 * 32767, abs=2)
    assert 0.06 < np.sqrt(np.mean((pcm[2000:8000] / 32768.0) ** 2)) < 0.1


def test_a_word_counts_where_text_and_recogniser_agree():
    words = [("The", 0.0, 0.2), ("dog", 0.2, 0.5), ("runs.", 0.5, 0.9)]
    assert people_speech.agreed(words, "the cat runs") == [words[0], words[2]]
    assert people_speech.agreed(words, None) == words


def test_what_is_written_together_is_said_apart():
    said = people_speech.as_said([("A", 0.0, 0.1), ("12-ounce", 0.1, 0.5), ("...", 0.5, 0.6)])
    assert [(word, round(start, 2)) for word, start, _ in said] == [("a", 0.0), ("twelve", 0.1), ("ounce", 0.3)]


def test_people_become_streams_of_listening_and_of_orders(folder, tmp_path, monkeypatch):
    """Orders have their slots and are not answered before their last word; words come from one recogniser's call."""
    out, calls = tmp_path / "speech", []
    labels = folder / "cafe/data/label/label.json"
    labels.write_text(json.dumps({"ffffffff-somebody-else.wav": {"slots": {"coffeeDrink": "latte", "size": "large"}}}))
    monkeypatch.setattr(surroundings, "babble", lambda rng: np.ones(24_000, np.float32))

    class Fake:
        def timed_words(self, pcm):
            calls.append(len(pcm))
            return [("mark", 0.1, 0.2), ("is", 0.2, 0.4)]

    monkeypatch.setattr(people_speech.recognisers, "Whisper", Fake)
    options = argparse.Namespace(out=out, people=folder, times=2, seed=1)
    people_speech.speak(options)
    ordered = json.loads((out / "user-cafe_0000.json").read_text())
    assert len(ordered) == 2
    (clip,) = ordered[0]["clips"]
    assert (clip["kind"], clip["slots"]) == ("order", {"size": "large", "drink": "latte"})
    assert clip["end_sec"] == pytest.approx(clip["start_sec"] + 0.5, abs=0.02)
    read = json.loads((out / "people_0000.json").read_text())
    assert {clip["kind"] for stream in read for clip in stream["clips"]} == {"listen"}
    spoken = [clip for stream in read for clip in stream["clips"] if stream["voice"] == "speechocean"]
    assert [word for word, _ in spoken[0]["words"]] == ["mark", "is"]
    assert np.load(out / "people_0000.npy").dtype == np.int16
    recognised = len(calls)
    (out / "people_0000.npy").unlink()
    people_speech.speak(options)
    assert len(calls) == recognised and (out / "people_0000.npy").exists()
