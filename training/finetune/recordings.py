"""Recorded conversations on disk, in the layout that `kyutai-labs/moshi-finetune` reads.

A manifest is a file of lines `{"path": "talks/a.wav", "duration": 24.5}`, the path relative to it. The WAV is
stereo, the agent left, the user right. Beside it lies `a.json`:

    {"alignments": [["Hello", [0.32, 0.61], "SPEAKER_MAIN"], ...],
     "prompt": {"text": "You work for ...", "voice": "voice.wav"},
     "expect": [{"kind": "price", "say": ["seven dollars"], "from_sec": 4.1, "to_sec": 9.0}]}

Words of any other speaker than `SPEAKER_MAIN` (the agent) are ignored. `prompt` and `expect` are this
project's additions, and optional: the role and voice the conversation was held with, paths relative to
the JSON file; and what the agent must say in free running, for validation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from personaplex.errors import InputError

AGENT_LABEL = "SPEAKER_MAIN"
DURATION_TOLERANCE_SEC = 0.5


@dataclass(frozen=True)
class Word:
    """One word of the agent, times from the recording's start."""

    text: str
    start_sec: float
    end_sec: float


@dataclass(frozen=True)
class Expected:
    """In this stretch of the recording the agent must say all of these, each a run of words."""

    kind: str
    say: tuple[str, ...]
    from_sec: float
    to_sec: float


@dataclass(frozen=True)
class Recording:
    """A conversation, its sound still on disk."""

    path: Path
    words: tuple[Word, ...]
    prompt_text: str = ""
    voice: Path | None = None
    expected: tuple[Expected, ...] = ()

    def read(self, sample_rate_hz: int) -> np.ndarray:
        """[2, N] float32: agent, user. Raises InputError for a file that is not stereo."""
        pcm, rate_hz = soundfile.read(self.path, dtype="float32", always_2d=True)
        if pcm.shape[1] != 2:
            raise InputError(f"{self.path} has {pcm.shape[1]} channels; two are needed: agent left, user right")
        if rate_hz != sample_rate_hz:
            pcm = soxr.resample(pcm, rate_hz, sample_rate_hz)
        return np.ascontiguousarray(pcm.T)


def read_manifest(path: str | Path) -> list[Recording]:
    """Every recording of a manifest, checked but for its samples. Raises InputError with file and line."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the manifest {path} cannot be read: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            found.append(_recording(_parsed(line, f"{path} line {number}"), path.parent, f"{path} line {number}"))
    if not found:
        raise InputError(f"the manifest {path} names no recording")
    return found


def write_manifest(path: Path, recordings: list[Path]) -> None:
    """A manifest of WAV files that lie below its folder."""
    lines = [
        json.dumps({"path": str(wav.relative_to(path.parent)), "duration": soundfile.info(wav).duration})
        for wav in recordings
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _recording(line: dict[str, Any], folder: Path, where: str) -> Recording:
    name, duration_sec = line.get("path"), line.get("duration")
    if not isinstance(name, str) or not isinstance(duration_sec, (int, float)):
        raise InputError(f'{where} must be {{"path": "file.wav", "duration": seconds}}')
    wav = folder / name
    if not wav.is_file():
        raise InputError(f"{where}: there is no {wav}")
    real_sec = soundfile.info(wav).duration
    if abs(real_sec - duration_sec) > DURATION_TOLERANCE_SEC:
        raise InputError(f"{where}: {wav} lasts {real_sec:.2f} s, not {duration_sec:.2f}")
    told = wav.with_suffix(".json")
    if not told.is_file():
        raise InputError(f"{where}: {wav} has no {told.name} with its words beside it")
    return _described(wav, _parsed(told.read_text(encoding="utf-8"), str(told)), str(told))


def _described(wav: Path, told: dict[str, Any], where: str) -> Recording:
    try:
        words = [
            Word(text, float(span[0]), float(span[1]))
            for text, span, speaker in told["alignments"]
            if speaker == AGENT_LABEL
        ]
        expected = [Expected(e["kind"], tuple(e["say"]), e["from_sec"], e["to_sec"]) for e in told.get("expect", ())]
        prompt = told.get("prompt", {})
        text, voice = prompt.get("text", ""), prompt.get("voice")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f'{where} must hold {{"alignments": [[word, [start_sec, end_sec], speaker], ...]}}: {error!r}'
        ) from error
    if any(later.start_sec < word.start_sec for word, later in zip(words, words[1:], strict=False)):
        raise InputError(f"{where}: the words of {AGENT_LABEL} are not in the order of their starts")
    if voice is not None and not (wav.parent / voice).is_file():
        raise InputError(f"{where}: there is no voice prompt {wav.parent / voice}")
    return Recording(wav, tuple(words), text, None if voice is None else wav.parent / voice, tuple(expected))


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{where} holds a {type(found).__name__}; an object is needed")
    return found
