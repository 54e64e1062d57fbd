"""A run's plot of latencies, and single conversations as pictures and sounds."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.duplex import layout
from benchmarks.duplex.runner import Take
from benchmarks.duplex.speech_activity import SAMPLE_RATE_HZ
from personaplex.audio.activity import timeline_of
from personaplex.audio.files import read_recording
from personaplex.files import write_atomically
from personaplex.web.timeline_picture import AGENT_COLOUR, USER_COLOUR, timeline_png

MAX_LATENCY_SEC = 4.0
_COLOURS = (AGENT_COLOUR, USER_COLOUR, "#6366f1")


def latency_png(latencies: Mapping[str, Sequence[float]], published: Mapping[str, float]) -> bytes:
    """Cumulative shares of latencies in seconds; published means as dashed lines in the same colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for colour, (name, values) in zip(_COLOURS, latencies.items(), strict=False):
        ordered = np.sort(np.asarray(values))
        if len(ordered):
            share = np.arange(1, len(ordered) + 1) / len(ordered)
            axes.step([0, *ordered, MAX_LATENCY_SEC], [0, *share, share[-1]], where="post", color=colour, label=name)
        if name in published:
            axes.axvline(published[name], color=colour, linestyle="--", linewidth=1)
    axes.set(xlabel="seconds", ylabel="share of items", xlim=(0, MAX_LATENCY_SEC), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right")
    return _png(figure)


def _png(figure) -> bytes:
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png")
    return encoded.getvalue()


def write_example(take: Take, folder: Path, stem: str) -> None:
    """``stem.png``: who spoke when, and the words; ``stem.mp3``: both sides, agent left, user right."""
    agent, user = (
        read_recording(path, sample_rate_hz=SAMPLE_RATE_HZ).pcm for path in (take.sound, take.item.folder / take.given)
    )
    user = np.pad(user, (0, max(0, len(agent) - len(user))))[: len(agent)]
    words = layout.words_of(layout.read_json(take.asr if take.asr.is_file() else take.text))
    png = timeline_png(timeline_of(agent, user, SAMPLE_RATE_HZ), words)
    write_atomically(folder / f"{stem}.png", lambda file: file.write(png))
    encoded = io.BytesIO()
    soundfile.write(encoded, np.stack([agent, user], axis=1).clip(-1, 1), SAMPLE_RATE_HZ, format="MP3")
    write_atomically(folder / f"{stem}.mp3", lambda file: file.write(encoded.getbuffer()))
