"""Gathers the codec's training material: `python -m training.codec.material --out DIR --people FOLDER`.

In the layout of `training.codec.speech`, but of people and neural voices: everything at one level, tracks of one
speaker back to back. People's phones are unknown; hibari and Kokoro tell theirs. What is kept for tests is refused.
A part that is not at hand is left out: without people or Kokoro the codec still trains, and generalises less.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training import kokoro_speech, people, tts
from training.codec.speech import PAUSE, SLOT_SAMPLES, UNKNOWN_PHONE, VOICE_SHARES, phone_labels, random_speaker
from training.codec.text import SentenceMaker
from training.tts import SAMPLE_RATE_HZ, speak
from training.tts_neural import HIBARI_PITCH_HZ

log = logging.getLogger(__name__)

LEVEL = 0.08  # root mean square of what sounds, of full scale
_LEAST_LEVEL = 1e-4
_PAUSE_SLOTS = (5, 10, 20, 40)
SENTENCES_PER_TRACK = 6
ORDINARY_SHARE = 0.3  # of hibari's tracks: the voice as it is
_PITCH, _FORMANT, _TEMPO, _RANGE = (0.5, 1.35), (0.82, 1.15), (0.82, 1.25), (0.6, 1.5)


@dataclass(frozen=True)
class Piece:
    """`pcm`: [T] float32 at 24 kHz. `labels`: [slots] uint8, a phone for every 20 ms, or None if unknown."""

    part: str
    pcm: np.ndarray
    labels: np.ndarray | None


class Corpus:
    """The files that a codec is trained from, being written."""

    def __init__(self, folder: Path, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._draw = folder, random.Random(seed)
        self._pcm, self._labels = open(folder / "pcm.i16", "wb"), open(folder / "phones.u8", "wb")  # noqa: SIM115
        self.numbers: dict[str, int] = {PAUSE: 0}
        self.minutes: dict[str, float] = {}

    def __enter__(self) -> Corpus:
        return self

    def __exit__(self, *_: object) -> None:
        self._pcm.close()
        self._labels.close()
        (self._folder / "phones.json").write_text(json.dumps(sorted(self.numbers, key=self.numbers.__getitem__)))
        (self._folder / "parts.json").write_text(json.dumps({k: round(v, 2) for k, v in self.minutes.items()}))

    def add(self, piece: Piece) -> None:
        """Writes a piece at the usual level, and a pause; one in which nothing sounds is left out."""
        level = people.sounding_level(piece.pcm)
        if level < _LEAST_LEVEL:
            return
        slots, pause = -(-len(piece.pcm) // SLOT_SAMPLES), self._draw.choice(_PAUSE_SLOTS)
        pcm = np.zeros((slots + pause) * SLOT_SAMPLES, np.int16)
        pcm[: len(piece.pcm)] = np.clip(piece.pcm * (LEVEL / level) * 32767, -32768, 32767)
        labels = np.full(slots + pause, UNKNOWN_PHONE if piece.labels is None else self.numbers[PAUSE], np.uint8)
        if piece.labels is not None:
            labels[:slots] = piece.labels[:slots]
        self._pcm.write(pcm.tobytes())
        self._labels.write(labels.tobytes())
        self.minutes[piece.part] = self.minutes.get(piece.part, 0.0) + len(piece.pcm) / SAMPLE_RATE_HZ / 60


def pieces_of_people(folder: Path, minutes: dict[str, float], seed: int) -> Iterator[Piece]:
    """Up to `minutes` of each set, drawn over all of its speakers."""
    for name, limit in minutes.items():
        found = people.recordings(folder, kept=False, sets=(name,))
        people.refuse_kept(found)
        random.Random(seed).shuffle(found)
        said_min = 0.0
        for recording in found:
            if said_min >= limit:
                break
            pcm = people.trimmed(recording.pcm())
            said_min += len(pcm) / SAMPLE_RATE_HZ / 60
            yield Piece(name, pcm, None)


def random_hibari(draw: random.Random) -> dict[str, float]:
    """Random manner of one track of hibari's: pitch, vocal tract, tempo and liveliness."""
    if draw.random() < ORDINARY_SHARE:
        return dict(tempo=draw.uniform(0.9, 1.15))
    pitch, formant = draw.uniform(*_PITCH), draw.uniform(*_FORMANT)
    speaker = dict(tempo=draw.uniform(*_TEMPO), formant=formant, pitch_range=draw.uniform(*_RANGE))
    return speaker | dict(pitch_hz=HIBARI_PITCH_HZ * pitch)


def pieces_of_hibari(minutes: float, numbers: dict[str, int], seed: int) -> Iterator[Piece]:
    """`minutes` of hibari saying sentences of any words."""
    draw, maker, said_min = random.Random(seed), SentenceMaker(seed), 0.0
    while said_min < minutes:
        speaker = random_hibari(draw)
        for _ in range(SENTENCES_PER_TRACK):
            text = maker.sentence()
            try:
                utterance = speak(text, tts.HIBARI, **speaker)
            except tts.TtsError as error:
                log.warning("%s", error)
                continue
            said_min += len(utterance.pcm) / SAMPLE_RATE_HZ / 60
            yield Piece("hibari", utterance.pcm, phone_labels(utterance, numbers))


def pieces_of_kokoro(folder: Path, numbers: dict[str, int]) -> Iterator[Piece]:
    """Everything that `training.kokoro_speech` has spoken into a folder."""
    for clip in kokoro_speech.clips(folder):
        yield Piece("kokoro", clip.utterance.pcm, phone_labels(clip.utterance, numbers))


def pieces_of_flite(minutes: float, numbers: dict[str, int], seed: int) -> Iterator[Piece]:
    """`minutes` of the recorded voices of `training.codec.speech`, as they are or changed a little."""
    draw, maker, said_min = random.Random(seed), SentenceMaker(seed), 0.0
    voices = {name: share for name, share in VOICE_SHARES.items() if name in tts.FLITE_VOICES and tts.available(name)}
    while voices and said_min < minutes:
        speaker = random_speaker(draw, voices)
        for _ in range(SENTENCES_PER_TRACK):
            utterance = speak(maker.sentence(), **speaker)
            said_min += len(utterance.pcm) / SAMPLE_RATE_HZ / 60
            yield Piece("flite", utterance.pcm, phone_labels(utterance, numbers))


def gather(options: argparse.Namespace) -> dict[str, float]:
    """Writes the corpus; returns the minutes of each part."""
    with Corpus(options.out, options.seed) as corpus:
        parts: list[Iterator[Piece]] = []
        if options.people:
            minutes = dict.fromkeys(people.SETS, options.people_minutes)
            parts.append(pieces_of_people(options.people, minutes, options.seed))
        if options.kokoro:
            parts.append(pieces_of_kokoro(options.kokoro, corpus.numbers))
        if options.hibari_minutes:
            parts.append(pieces_of_hibari(options.hibari_minutes, corpus.numbers, options.seed))
        parts.append(pieces_of_flite(options.flite_minutes, corpus.numbers, options.seed))
        for part in parts:
            for piece in part:
                corpus.add(piece)
            log.info("%s", {name: round(minutes, 1) for name, minutes in corpus.minutes.items()})
        return corpus.minutes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--people", type=Path, help="recordings of people, as training.people reads them")
    parser.add_argument("--people-minutes", type=float, default=90.0, help="of each set at most")
    parser.add_argument("--kokoro", type=Path, help="a folder of training.kokoro_speech")
    parser.add_argument("--hibari-minutes", type=float, default=120.0)
    parser.add_argument("--flite-minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    log.info("minutes: %s", json.dumps({name: round(minutes, 1) for name, minutes in gather(options).items()}))


if __name__ == "__main__":
    main()
