"""Speaks the codec's training speech into one folder: tracks of one speaker each, back to back.

Files: `pcm.i16` (24 kHz mono), `phones.u8` (one phone number for every 20 ms; UNKNOWN_PHONE where the
voice gives no alignment) and `phones.json` (the phones' names, in the order of their numbers).
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.codec.text import SentenceMaker
from training.tts import ESPEAK_VARIANTS, SAMPLE_RATE_HZ, TtsError, Utterance, available, speak

SLOT_SAMPLES = 480  # 20 ms: the grid of the phone labels
UNKNOWN_PHONE = 255
PAUSE = "pau"
SENTENCES_PER_TRACK = 6
# Mostly the agent's voices: of everyone else's speech only what is said has to get through.
VOICE_SHARES = {"slt": 0.26, "rms": 0.16, "awb": 0.2, "kal16": 0.24, "espeak": 0.14}
ORDINARY_SHARE = 0.75  # of the tracks of recorded voices: spoken as they are, a little faster or slower

log = logging.getLogger(__name__)


def random_speaker(draw: random.Random, voices: dict[str, float]) -> dict:
    """One track's speaker: a voice as it is, or with another pitch, tempo or vocal tract."""
    voice = draw.choices(list(voices), list(voices.values()))[0]
    if voice == "espeak":
        return dict(voice=draw.choice(ESPEAK_VARIANTS), tempo=draw.uniform(0.75, 1.15), pitch_hz=draw.uniform(80, 220))
    if draw.random() < ORDINARY_SHARE:
        return dict(voice=voice, tempo=draw.uniform(0.94, 1.1))
    speaker = dict(voice=voice, tempo=draw.uniform(0.85, 1.2))
    if draw.random() < 0.4:
        speaker["pitch_hz"] = {"slt": 170, "rms": 100, "awb": 130, "kal16": 105}[voice] * draw.uniform(0.8, 1.3)
        speaker["pitch_range"] = draw.uniform(0.4, 1.6)
    if draw.random() < 0.3:
        speaker["formant"] = draw.uniform(0.87, 1.18)
    return speaker


def phone_labels(utterance: Utterance, numbers: dict[str, int]) -> np.ndarray:
    """[slots] uint8, one label per 20 ms of the utterance, its length rounded up."""
    slots = -(-len(utterance.pcm) // SLOT_SAMPLES)
    labels = np.full(slots, numbers[PAUSE] if utterance.phones else UNKNOWN_PHONE, np.uint8)
    start = 0
    for phone in utterance.phones:
        end = min(slots, round(phone.end_sec * SAMPLE_RATE_HZ / SLOT_SAMPLES))
        labels[start:end] = numbers.setdefault(phone.name, len(numbers))
        start = end
    return labels


@dataclass(frozen=True)
class _Worker:
    """A pool process's own sentence maker, and the voices' shares."""

    maker: SentenceMaker
    voices: dict[str, float]


_worker: _Worker  # of this process, made when it starts


def _track(seed: int) -> list[tuple[Utterance, int]]:
    """The utterances of one track, each with the number of silent slots after it."""
    draw = random.Random(seed)
    speaker = random_speaker(draw, _worker.voices)
    said = []
    for _ in range(SENTENCES_PER_TRACK):
        try:
            utterance = speak(_worker.maker.sentence(), **speaker)
        except TtsError as error:
            log.warning("%s", error)
            continue
        said.append((utterance, int(draw.choice((0, 5, 10, 20, 60)) * draw.random())))
    return said


def _start_worker(seed: int, voices: dict[str, float]) -> None:
    global _worker
    _worker = _Worker(SentenceMaker(seed + os.getpid()), voices)


def speak_corpus(
    folder: Path, hours: float, *, shares: dict[str, float] | None = None, seed: int = 1, processes: int = 2
) -> None:
    """Writes at least `hours` of speech; takes about a minute for an hour on two cores.

    `shares`: how often each voice speaks, "espeak" standing for all of its variants.
    """
    folder.mkdir(parents=True, exist_ok=True)
    voices = {
        name: share
        for name, share in (shares or VOICE_SHARES).items()
        if available(ESPEAK_VARIANTS[0] if name == "espeak" else name)
    }
    if not voices:
        raise TtsError("no synthesiser is installed: apt install flite espeak-ng")
    numbers = {PAUSE: 0}
    wanted, written, began, next_note = int(hours * 3600 * SAMPLE_RATE_HZ), 0, time.monotonic(), 0
    seeds = range(seed * 1_000_000, (seed + 1) * 1_000_000)
    with (
        multiprocessing.get_context("spawn").Pool(processes, _start_worker, (seed, voices)) as pool,
        open(folder / "pcm.i16", "wb") as pcm_file,
        open(folder / "phones.u8", "wb") as phone_file,
    ):
        for track in pool.imap_unordered(_track, seeds, chunksize=1):
            for utterance, pause_slots in track:
                labels = phone_labels(utterance, numbers)
                slots = len(labels) + pause_slots
                pcm = np.zeros(slots * SLOT_SAMPLES, np.int16)
                pcm[: len(utterance.pcm)] = np.clip(utterance.pcm * 32767, -32768, 32767)
                pcm_file.write(pcm.tobytes())
                phone_file.write(np.pad(labels, (0, pause_slots), constant_values=numbers[PAUSE]).tobytes())
                written += len(pcm)
            if written > next_note:
                next_note += wanted // 10
                log.info("%.2f h in %.0f s", written / SAMPLE_RATE_HZ / 3600, time.monotonic() - began)
            if written >= wanted:
                break
        pool.terminate()
    (folder / "phones.json").write_text(json.dumps(sorted(numbers, key=numbers.__getitem__)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=3.5)
    parser.add_argument("--voices", nargs="+", choices=list(VOICE_SHARES), help="these alone, equally often")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    shares = dict.fromkeys(options.voices, 1.0) if options.voices else None
    speak_corpus(options.out, options.hours, shares=shares, seed=options.seed, processes=options.processes)


if __name__ == "__main__":
    main()
