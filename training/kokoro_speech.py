"""Speaks Kokoro's share ahead of its use: `python -m training.kokoro_speech --out build/kokoro --minutes 60`.

Kokoro takes a core about as long as it speaks, so this runs in the background and its speech is kept. A shard is
`NNNNN.npy`, int16 [samples] at 24 kHz, one speaker's sentences back to back, and `NNNNN.json`, which says what is
where. Shards are seeded by their number: stopped and started again, it goes on. Voices that are kept for tests are
refused (`training.kept_out`).
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training import kept_out, neural_voices, sentences, tts
from training.codec.text import SentenceMaker
from training.tts_neural import spelled_out

log = logging.getLogger(__name__)

SENTENCES_PER_SHARD = 8
RARE = ("af_nicole", "am_santa")  # a whisper and a growl: one shard in twenty of those without a mixture
RARE_SHARE, MIXTURE_SHARE = 0.05, 0.55
TEMPO = (0.85, 1.2)
_ENGLISH = ("af_", "am_", "bf_", "bm_")


def styles(folder: Path | None = None) -> list[str]:
    """The English voices that may be learned from."""
    found = (folder or neural_voices.prepared(neural_voices.KOKORO_STYLES)).glob("*.bin")
    return sorted(p.stem for p in found if p.stem.startswith(_ENGLISH) and p.stem not in kept_out.KOKORO)


def random_voice(draw: random.Random, names: Sequence[str]) -> str:
    """One of these voices, or a mixture of two of one accent and sex."""
    usual, rare = ([name for name in names if (name in RARE) == wanted] for wanted in (False, True))
    first = draw.choice(usual)
    others = [name for name in usual if name[:2] == first[:2] and name != first]
    if not others or draw.random() >= MIXTURE_SHARE:
        return tts.KOKORO_PREFIX + (draw.choice(rare) if rare and draw.random() < RARE_SHARE else first)
    share = draw.randint(25, 75)
    return f"{tts.KOKORO_PREFIX}{first}=0.{share},{draw.choice(others)}=0.{100 - share}"


def speak_shard(folder: Path, index: int, names: Sequence[str]) -> float:
    """Speaks one shard: half sentences of any words, half what users say to nano; returns its seconds."""
    draw, maker = random.Random(f"kokoro-{index}"), SentenceMaker(100_000 + index)
    voice, tempo = random_voice(draw, names), round(draw.uniform(*TEMPO), 3)
    kept_out.refuse_voice(voice)
    said = [text for _, text in sentences.user_sentences()]
    parts, clips, at = [], [], 0
    for number in range(SENTENCES_PER_SHARD):
        text = spelled_out(draw.choice(said) if number % 2 else maker.sentence())
        try:
            utterance = tts.speak(text, voice, tempo=tempo)
        except tts.TtsError as error:
            log.warning("%s", error)
            continue
        pcm = np.round(utterance.pcm * 32767).astype(np.int16)
        phones = [(phone.name, round(phone.end_sec, 4)) for phone in utterance.phones]
        words = [(word.text, round(word.start_sec, 4), round(word.end_sec, 4)) for word in utterance.words]
        clips.append(dict(text=text, at=at, samples=len(pcm), phones=phones, words=words))
        parts.append(pcm)
        at += len(pcm)
    path = folder / f"{index:05d}.npy"
    path.with_suffix(".json").write_text(json.dumps(dict(voice=voice, tempo=tempo, clips=clips)))
    np.save(partial := path.with_suffix(".tmp.npy"), np.concatenate(parts))
    partial.rename(path)  # a shard that has its name is whole
    return at / tts.SAMPLE_RATE_HZ


@dataclass(frozen=True)
class KokoroClip:
    """One sentence of a shard, and the voice or mixture that says it."""

    voice: str
    text: str
    utterance: tts.Utterance


def clips(folder: Path) -> Iterator[KokoroClip]:
    """Every sentence of a folder's shards, in their order; KeptOutError where a voice is kept for tests."""
    for path in sorted(folder.glob("[0-9]*.npy")):
        if path.name.endswith(".tmp.npy"):
            continue
        told, pcm = json.loads(path.with_suffix(".json").read_text()), np.load(path, mmap_mode="r")
        kept_out.refuse_voice(told["voice"])
        for clip in told["clips"]:
            part = pcm[clip["at"] : clip["at"] + clip["samples"]].astype(np.float32) / 32768.0
            phones = tuple(tts.Phone(*phone) for phone in clip["phones"])
            words = tuple(tts.Word(*word) for word in clip["words"])
            yield KokoroClip(told["voice"], clip["text"], tts.Utterance(part, tts.SAMPLE_RATE_HZ, phones, words))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0, help="of speech, those that are there included")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    names, spoken_sec, index, began = styles(), 0.0, 0, time.monotonic()
    while spoken_sec < 60 * options.minutes:
        path = options.out / f"{index:05d}.npy"
        if path.exists():
            spoken_sec += len(np.load(path, mmap_mode="r")) / tts.SAMPLE_RATE_HZ
        else:
            spoken_sec += speak_shard(options.out, index, names)
            log.info("%.1f min of speech after %.0f s", spoken_sec / 60, time.monotonic() - began)
        index += 1


if __name__ == "__main__":
    main()
