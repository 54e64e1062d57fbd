"""The files made of a conversation: transcripts, sound, picture."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from personaplex.audio.activity import timeline_of
from personaplex.audio.files import write_stereo_wav, write_wav
from personaplex.audio.frames import SAMPLE_RATE_HZ
from personaplex.files import write_atomically, write_text
from personaplex.text.transcript import Transcript
from personaplex.web.timeline_picture import timeline_png


@dataclass(frozen=True)
class Exports:
    """The files made of a conversation; those of the sound are None where none was kept."""

    transcript_text: Path
    transcript_json: Path
    transcript_webvtt: Path
    answer: Path | None = None  # the persona alone
    stereo: Path | None = None  # agent left, user right
    picture: Path | None = None  # who spoke when, PNG

    @property
    def transcripts(self) -> tuple[Path, Path, Path]:
        return self.transcript_text, self.transcript_json, self.transcript_webvtt


def export(
    folder: Path,
    name: str,
    transcript: Transcript,
    agent: np.ndarray | None = None,
    user: np.ndarray | None = None,
    *,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
) -> Exports:
    """Write a conversation's files as ``folder/name…``; agent, user: [N] float32, or None without sound."""
    stem = _file_stem(name)
    text, json, webvtt = (folder / f"{stem}.{suffix}" for suffix in ("txt", "json", "vtt"))
    write_text(text, transcript.text + "\n")
    write_text(json, transcript.to_json())
    write_text(webvtt, transcript.to_webvtt())
    if agent is None or user is None or not len(agent):
        return Exports(text, json, webvtt)
    answer, stereo, picture = (folder / f"{stem}{ending}" for ending in ("-persona.wav", "-both.wav", ".png"))
    write_wav(answer, agent, sample_rate_hz)
    write_stereo_wav(stereo, agent, user, sample_rate_hz)
    png = timeline_png(timeline_of(agent, user, sample_rate_hz), transcript.words)
    write_atomically(picture, lambda file: file.write(png))
    return Exports(text, json, webvtt, answer, stereo, picture)


def _file_stem(name: str) -> str:
    """A name that is a file's name everywhere."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "conversation"
