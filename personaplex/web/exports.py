"""The files made of a conversation: transcripts, sound, timeline picture."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from personaplex.audio.activity import timeline_of
from personaplex.audio.files import write_stereo_wav, write_wav
from personaplex.audio.frames import SAMPLE_RATE_HZ
from personaplex.files import write_atomically, write_text
from personaplex.text.dialogue import Dialogue
from personaplex.text.transcript import Transcript, Word
from personaplex.web.html import picture_html
from personaplex.web.timeline_picture import timeline_png, timeline_svg


@dataclass(frozen=True)
class Exports:
    """The files of one conversation, and its timeline for the page; no sound was kept where ``stereo`` is None."""

    transcript_text: Path
    transcript_json: Path
    transcript_webvtt: Path
    answer: Path | None = None  # the persona alone, WAV
    stereo: Path | None = None  # persona left, user right, WAV
    picture: Path | None = None  # the timeline, PNG
    picture_html: str = ""  # the timeline, SVG in a figure

    @property
    def transcripts(self) -> tuple[Path, Path, Path]:
        return self.transcript_text, self.transcript_json, self.transcript_webvtt

    @property
    def downloads(self) -> list[str]:
        """Paths of the files that the page lists for download; the players offer the sound themselves."""
        return [str(path) for path in (*self.transcripts, self.picture) if path is not None]


def export(
    folder: Path,
    name: str,
    transcript: Transcript,
    agent: np.ndarray | None = None,
    user: np.ndarray | None = None,
    user_words: tuple[Word, ...] | None = None,
    *,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
) -> Exports:
    """Write a conversation's files as ``folder/name…``; agent, user: [N] float32, or None without sound.

    ``user_words`` is None where nobody wrote them down.
    Raises OSError where the folder cannot be written.
    """
    stem, dialogue = _file_stem(name), Dialogue(transcript, user_words)
    text, json, webvtt = (folder / f"{stem}.{suffix}" for suffix in ("txt", "json", "vtt"))
    write_text(text, dialogue.to_text())
    write_text(json, dialogue.to_json())
    write_text(webvtt, dialogue.to_webvtt())
    _make_private(text, json, webvtt)
    if agent is None or user is None or not len(agent):
        return Exports(text, json, webvtt)
    answer, stereo, picture = (folder / f"{stem}{ending}" for ending in ("-persona.wav", "-both.wav", ".png"))
    write_wav(answer, agent, sample_rate_hz)
    write_stereo_wav(stereo, agent, user, sample_rate_hz)
    timeline = timeline_of(agent, user, sample_rate_hz)
    png = timeline_png(timeline, dialogue.agent.words, dialogue.user or ())
    write_atomically(picture, lambda file: file.write(png))
    _make_private(answer, stereo, picture)
    figure = picture_html(timeline_svg(timeline, dialogue.agent.words, dialogue.user or ()), timeline.summary)
    return Exports(text, json, webvtt, answer, stereo, picture, figure)


def _make_private(*paths: Path) -> None:
    """Leave the files to this user alone."""
    for path in paths:
        path.chmod(0o600)


def _file_stem(name: str) -> str:
    """``name`` as a file name that every system takes."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "conversation"
