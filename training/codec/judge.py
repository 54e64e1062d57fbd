"""Judges a codec on held-out speech: `python -m training.codec.judge CODEC --people FOLDER`.

People and voices that are kept for tests (`training.kept_out`), before and after the codec: the word error rate of
Whisper base, which has no grammar, and DNSMOS p808, an estimate of people's ratings. The last line is one JSON object.
Where a set has no transcripts, the reference is what the recogniser hears in the recording itself.

CODEC is a checkpoint or a folder in the published layout.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from training import kept_out, people, tts
from training.codec.encode import decode_many, encode_many
from training.codec.evaluate import NOVEL_SENTENCES
from training.codec.export import any_codec
from training.codec.model import Codec
from training.recognisers import Dnsmos, Whisper, words_wrong

log = logging.getLogger(__name__)

TEXTS = Path(__file__).parent.parent / "kept_out_texts.json"
PEOPLE_GROUPS = ("librispeech-other", "arctic", "librispeech", "cafe")
_QUESTIONS = (
    "Hello, can you tell me your name?",
    "How much is a large coffee with milk?",
    "What time do you close on Saturday?",
    "Thank you very much, that is all for today.",
)
SAID_GROUPS = {
    "kokoro-kept": tuple(f"{tts.KOKORO_PREFIX}{name}" for name in sorted(kept_out.KOKORO)),
    "kokoro": tuple(f"{tts.KOKORO_PREFIX}{name}" for name in ("am_michael", "bf_emma", "bm_george", "af_heart")),
    "hibari": (tts.HIBARI,),
    "flite": ("slt", "rms"),
}
_LONGEST_SEC = 30.0  # what the recogniser takes at once


@dataclass(frozen=True)
class Item:
    """One recording. `text`: None where nobody wrote down what is said. `key`: names it in the cache."""

    group: str
    key: str
    pcm: np.ndarray
    text: str | None


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """`count` of the items, evenly spread over all of them."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def items_of_people(folder: Path, count: int) -> Iterator[Item]:
    """Up to `count` recordings of each group that are kept for tests and not too long."""
    texts = json.loads(TEXTS.read_text())
    found = people.recordings(folder, kept=True)
    for group in PEOPLE_GROUPS:
        of_group = [recording for recording in found if recording.group == group]
        if group == "librispeech-other":
            of_group = [recording for recording in of_group if recording.path.stem in texts]
        for recording in spread(of_group, count):
            pcm = recording.pcm()
            if len(pcm) <= _LONGEST_SEC * tts.SAMPLE_RATE_HZ:
                yield Item(group, recording.path.name, pcm, recording.text or texts.get(recording.path.stem))


def items_of_voices(cache: Path, count: int) -> Iterator[Item]:
    """About `count` sentences said by each group of voices that this machine has; recordings are kept in `cache`."""
    texts = [f"{text[0].upper()}{text[1:]}." for text in NOVEL_SENTENCES[40:]] + list(_QUESTIONS)
    for group, voices in SAID_GROUPS.items():
        if not all(tts.available(voice) for voice in voices):
            log.info("%s is left out: not installed", group)
            continue
        for index, text in enumerate(spread(texts, count)):
            voice = voices[index % len(voices)]
            path = cache / f"{voice.replace(':', '-')}-{hashlib.sha1(text.encode()).hexdigest()[:12]}.wav"
            if not path.exists():
                soundfile.write(path, tts.speak(text, voice).pcm, tts.SAMPLE_RATE_HZ)
            yield Item(group, path.name, soundfile.read(path, dtype="float32")[0], text)


class Judged:
    """A cache, in a file, of transcripts and ratings of the originals, which do not change."""

    def __init__(self, cache: Path, hear: Callable[[np.ndarray], str], rate: Callable[[np.ndarray], float]) -> None:
        self._path, self.hear, self.rate = cache / "originals.json", hear, rate
        self._known: dict[str, tuple[str, float]] = json.loads(self._path.read_text()) if self._path.exists() else {}

    def original(self, item: Item) -> tuple[str, float]:
        key = f"{item.group}/{item.key}"
        if key not in self._known:
            self._known[key] = (self.hear(item.pcm), self.rate(item.pcm))
            self._path.write_text(json.dumps(self._known, indent=0))
        heard, rating = self._known[key]
        return heard, rating


@torch.inference_mode()
def unquantized(codec: Codec, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Reconstructions without the quantiser: the bound for any codebooks."""
    frame, made = codec.shape.frame_samples, []
    for wave in waves:
        padded = torch.from_numpy(np.pad(wave, (0, -len(wave) % frame)))[None]
        made.append(codec.decode(codec.quantizer.unquantized(codec.encode(padded)).latent)[0].numpy())
    return made


def through(codec: Codec, items: Sequence[Item], books: int | None) -> list[np.ndarray]:
    """The recordings as the codec gives them back; `books`: of its codebooks, or 0 for no quantiser."""
    waves = [item.pcm for item in items]
    if books == 0:
        made = unquantized(codec, waves)
    else:
        made = decode_many(codec, [codes[:books] for codes in encode_many(codec, waves)])
    return [np.clip(wave[: len(item.pcm)], -1.0, 1.0) for wave, item in zip(made, items, strict=True)]


def judge(
    codec: Codec, items: Sequence[Item], judged: Judged, books: int | None = None, keep: Path | None = None
) -> dict[str, dict[str, float]]:
    """For each group the share of words that is wrong, and the rating, before and after."""
    report = {}
    for group in dict.fromkeys(item.group for item in items):
        of_group = [item for item in items if item.group == group]
        before = [judged.original(item) for item in of_group]
        made = through(codec, of_group, books)
        after = [(judged.hear(wave), judged.rate(wave)) for wave in made]
        said = [heard if item.text is None else item.text for item, (heard, _) in zip(of_group, before, strict=True)]
        report[group] = {
            "recordings": len(of_group),
            "wrong_before": round(100 * words_wrong(said, [heard for heard, _ in before]), 1),
            "wrong_after": round(100 * words_wrong(said, [heard for heard, _ in after]), 1),
            "rating_before": round(float(np.mean([rating for _, rating in before])), 2),
            "rating_after": round(float(np.mean([rating for _, rating in after])), 2),
        }
        log.info("%s: %s", group, report[group])
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
            for item, wave in list(zip(of_group, made, strict=True))[:4]:
                soundfile.write(keep / f"{group}-{Path(item.key).stem}.wav", wave, tts.SAMPLE_RATE_HZ)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("codec", type=Path, help="a checkpoint, or a folder in the published layout")
    parser.add_argument("--people", type=Path, help="recordings of people, as training.people reads them")
    parser.add_argument("--cache", type=Path, default=Path("build/judge"), help="what the voices said and was heard")
    parser.add_argument("--count", type=int, default=40, help="recordings a group at most")
    parser.add_argument("--groups", nargs="+", help="these alone")
    parser.add_argument("--books", type=int, help="use so many codebooks; 0: none at all")
    parser.add_argument("--keep", type=Path, help="write four of each group's recordings here, after the codec")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    items = list(items_of_people(options.people, options.count)) if options.people else []
    items += items_of_voices(options.cache, options.count)
    items = [item for item in items if not options.groups or item.group in options.groups]
    judged = Judged(options.cache, Whisper().hear, Dnsmos().rate)
    print(json.dumps(judge(any_codec(options.codec), items, judged, options.books, options.keep)))


if __name__ == "__main__":
    main()
