"""Recordings of people, read from copies of public repositories: who speaks, what is said, and what is kept for tests.

A folder holds one folder a set, unpacked as its repository has it; sets that are not there are left out. What each is,
and under which licence, is in docs/training.md. None of it is ever committed.

| folder | repository | licence |
|---|---|---|
| `cafe` | Picovoice/speech-to-intent-benchmark | Apache-2.0 |
| `arctic` | rhasspy/dataset-voice-kathleen | CC0 1.0 |
| `librispeech` | resemble-ai/Resemblyzer (LibriSpeech in its `audio_data`) | CC BY 4.0 |
| `speechocean` | jimbozhang/speechocean762 | free for any use |
| `wakewords` | Picovoice/wake-word-benchmark | Apache-2.0 |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from training import kept_out
from training.tts import SAMPLE_RATE_HZ

OLDEST_CHILD_YEARS = 14
_SOUNDING = 0.005  # of full scale
TRIM_LEVEL, _LEAD_SEC, _TAIL_SEC = 0.04, 0.1, 0.2  # of the loudest; what is left around the speech


@dataclass(frozen=True)
class Recording:
    """`text`: what is said, or None where the set does not tell. `kept`: for tests alone."""

    path: Path
    group: str
    speaker: str
    text: str | None = None
    kept: bool = False

    def pcm(self) -> np.ndarray:
        """[T] float32 at 24 kHz, mono, as loud as it was recorded."""
        wave, rate_hz = soundfile.read(self.path, dtype="float32", always_2d=True)
        return soxr.resample(wave.mean(1), rate_hz, SAMPLE_RATE_HZ).astype(np.float32)


def refuse_kept(recordings: Iterable[Recording]) -> None:
    """Raises KeptOutError where one of them is kept for tests."""
    for recording in recordings:
        if recording.kept:
            raise kept_out.KeptOutError(f"{recording.path.name} of {recording.group} is kept for tests")


def sounding_level(pcm: np.ndarray) -> float:
    """The root mean square of what sounds in it; 0 where nothing does."""
    sounding = pcm[np.abs(pcm) > _SOUNDING]
    return float(np.sqrt(np.mean(np.square(sounding)))) if len(sounding) else 0.0


def trimmed(pcm: np.ndarray) -> np.ndarray:
    """[T] float32 at 24 kHz without the silence before and after what is said."""
    loud = np.flatnonzero(np.abs(pcm) > TRIM_LEVEL * np.abs(pcm).max(initial=0.0))
    if not len(loud):
        return pcm[:0]
    lead, tail = int(_LEAD_SEC * SAMPLE_RATE_HZ), int(_TAIL_SEC * SAMPLE_RATE_HZ)
    return pcm[max(0, loud[0] - lead) : loud[-1] + tail]


# -- the sets


def _cafe(folder: Path) -> list[Recording]:
    """Orders of coffee. The speakers are not known; `slots_of` has what is ordered."""
    paths = sorted((folder / "data/speech/clean").glob("*.wav"))
    kept = kept_out.cafe_recordings()
    return [Recording(path, "cafe", "", kept=path.name in kept) for path in paths]


def cafe_slots(folder: Path) -> dict[str, dict[str, str]]:
    """File name -> what is ordered: coffeeDrink, size, milkAmount, roast, sugarAmount, numberOfShots."""
    labels = json.loads((folder / "data/label/label.json").read_text())
    return {name: label["slots"] for name, label in labels.items()}


def _arctic(folder: Path) -> list[Recording]:
    """One American woman; the last twelve minutes, and every reading of their sentences, are kept."""
    paths = sorted((folder / "data").glob("*.wav"))
    sentence = {path: path.name.split("_")[1] for path in paths}
    kept, left_sec = set(), kept_out.ARCTIC_SEC
    for path in reversed(paths):
        if left_sec <= 0:
            break
        kept.add(sentence[path])
        left_sec -= soundfile.info(path).duration
    texts = {path: path.with_suffix(".txt").read_text().strip() for path in paths}
    return [Recording(path, "arctic", "kathleen", texts[path], sentence[path] in kept) for path in paths]


def _librispeech(folder: Path) -> list[Recording]:
    """Readers of train-clean-100, an utterance each, every fifth kept; all of test-other is kept."""
    audio = folder / "audio_data"
    train = sorted((audio / "librispeech_train-clean-100").glob("*.flac"), key=lambda path: _reader(path))
    every = kept_out.EVERY_FIFTH
    found = [
        Recording(path, "librispeech", path.name.split("-")[0], kept=index % every == every - 1)
        for index, path in enumerate(train)
    ]
    other = sorted((audio / "librispeech_test-other").glob("*/*.flac"))
    return found + [Recording(path, "librispeech-other", path.parent.name, kept=True) for path in other]


def _reader(path: Path) -> str:
    """The reader's number as text, so that "103" sorts before "1034" before "11", as file names do."""
    return path.name.split("-")[0]


def _columns(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return {key: rest.strip() for key, _, rest in (line.replace("\t", " ").partition(" ") for line in lines)}


def _speechocean(folder: Path) -> list[Recording]:
    """Speakers of Mandarin read English; those of 14 or younger are left out."""
    found = []
    for part in ("train", "test"):
        tables = {name: _columns(folder / part / name) for name in ("wav.scp", "text", "utt2spk", "spk2age")}
        for utterance, name in sorted(tables["wav.scp"].items()):
            speaker = tables["utt2spk"][utterance]
            if int(tables["spk2age"][speaker]) > OLDEST_CHILD_YEARS:
                found.append(Recording(folder / name, "speechocean", speaker, tables["text"][utterance].lower()))
    return found


def _wakewords(folder: Path) -> list[Recording]:
    """Single words by more than fifty people; which of them speaks is not known."""
    paths = sorted(path for path in (folder / "audio").glob("*/*.wav"))
    return [Recording(path, "wakewords", "", path.parent.name) for path in paths]


SETS: dict[str, Callable[[Path], list[Recording]]] = {
    "cafe": _cafe,
    "arctic": _arctic,
    "librispeech": _librispeech,
    "speechocean": _speechocean,
    "wakewords": _wakewords,
}


def recordings(folder: Path, *, kept: bool, sets: Iterable[str] = tuple(SETS)) -> list[Recording]:
    """Those of the sets in `folder` that are kept for tests, or those that are not."""
    found = [recording for name in sets if (folder / name).is_dir() for recording in SETS[name](folder / name)]
    return [recording for recording in found if recording.kept == kept]
