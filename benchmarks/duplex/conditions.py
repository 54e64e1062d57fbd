"""Listening conditions: noise, a second talker, a telephone line, a silent lead-in, rumble, an echo."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import soxr
from scipy import signal

from benchmarks.duplex import layout, texts
from benchmarks.duplex.echo import Echo
from benchmarks.duplex.layout import Kind
from benchmarks.duplex.scenes import Scene
from benchmarks.duplex.speakers import Speak, random_speaker
from benchmarks.duplex.speech_activity import SAMPLE_RATE_HZ
from training import users

NOISE_SNR_DB = 15.0
SECOND_TALKER_DB = -12.0
TELEPHONE_HZ, TELEPHONE_BAND_HZ = 8_000, (300, 3_400)
LEAD_IN_SEC = 3.0
RUMBLE_RMS, RUMBLE_POLE = 0.03, 0.995
ECHO_DELAY_MS, ECHO_ROOM_MS = (120.0, 400.0), (100.0, 500.0)

Condition = Callable[[Scene, random.Random, Speak], Scene]


def clean(scene: Scene, rng: random.Random, speak: Speak) -> Scene:
    return scene


def noise(scene: Scene, rng: random.Random, speak: Speak) -> Scene:
    """Noise whose power falls with frequency, as of a room with a fan and a street outside, 15 dB below speech."""
    white = np.random.default_rng(rng.getrandbits(32)).standard_normal(len(scene.pcm))
    coloured = signal.lfilter([1.0], [1.0, -0.9], white)
    return _mixed(scene, coloured, -NOISE_SNR_DB)


def second_talker(scene: Scene, rng: random.Random, speak: Speak) -> Scene:
    """Somebody else in the room talks about something else all the time, 12 dB softer."""
    speaker, parts = random_speaker(rng, speak), [np.zeros(0, np.float32)]
    while sum(map(len, parts)) < len(scene.pcm):
        parts.append(speaker.say(rng.choice(texts.ASIDES)).pcm)
        parts.append(np.zeros(int(rng.uniform(0.2, 0.8) * SAMPLE_RATE_HZ), np.float32))
    return _mixed(scene, np.concatenate(parts)[: len(scene.pcm)], SECOND_TALKER_DB)


def telephone(scene: Scene, rng: random.Random, speak: Speak) -> Scene:
    """300 to 3 400 Hz at 8 kHz through G.711's μ-law."""
    narrow = soxr.resample(scene.pcm, SAMPLE_RATE_HZ, TELEPHONE_HZ)
    sos = signal.butter(4, TELEPHONE_BAND_HZ, "bandpass", fs=TELEPHONE_HZ, output="sos")
    decoded = users.through_mu_law(signal.sosfilt(sos, narrow))
    wide = soxr.resample(decoded, TELEPHONE_HZ, SAMPLE_RATE_HZ)
    wide = np.pad(wide, (0, max(0, len(scene.pcm) - len(wide))))[: len(scene.pcm)]
    return replace(scene, pcm=wide.astype(np.float32))


def lead_in(scene: Scene, rng: random.Random, speak: Speak) -> Scene:
    """Three seconds of silence first, in which an agent may greet: known to change results a lot."""
    return scene.later(LEAD_IN_SEC)


def rumble(scene: Scene, rng: random.Random, speak: Speak) -> Scene:
    """Brown noise at an RMS of 0.03: wind on the microphone, traffic behind the wall."""
    white = np.random.default_rng(rng.getrandbits(32)).standard_normal(len(scene.pcm))
    brown = signal.lfilter([1.0], [1.0, -RUMBLE_POLE], white)
    rumbling = brown * RUMBLE_RMS / np.sqrt(np.mean(np.square(brown)))
    return replace(scene, pcm=(scene.pcm + rumbling).clip(-1, 1).astype(np.float32))


def echo(level_db: float) -> Condition:
    """The agent's own voice comes back at a level, 120 to 400 ms late, through a room."""

    def echoing(scene: Scene, rng: random.Random, speak: Speak) -> Scene:
        delay_ms, room_ms = rng.uniform(*ECHO_DELAY_MS), rng.uniform(*ECHO_ROOM_MS)
        return replace(scene, echo=Echo(level_db, round(delay_ms, 1), round(room_ms, 1), rng.getrandbits(32)))

    return echoing


_OF_THE_LOUDSPEAKER: dict[str, Condition] = {
    "rumble": rumble,
    "echo_40_db": echo(-40.0),
    "echo_30_db": echo(-30.0),
    "echo_20_db": echo(-20.0),
}
"""Conditions in which an agent may hear a user who is not there."""
_OF_THE_USER: dict[str, Condition] = {
    "noise": noise,
    "second_talker": second_talker,
    "telephone": telephone,
    layout.LEAD_IN: lead_in,
}
CONDITIONS: dict[str, Condition] = {"clean": clean, **_OF_THE_USER, **_OF_THE_LOUDSPEAKER}


def conditions_of(task: str) -> dict[str, Condition]:
    """The conditions in which a task says something: an agent that listens has no echo, a silent user no telephone."""
    kind = layout.kind_of(task)
    if kind is Kind.GREETING:
        return {"clean": clean, **_OF_THE_LOUDSPEAKER}
    if kind in (Kind.TURN, Kind.INTERRUPTION):
        return CONDITIONS
    return {"clean": clean, **_OF_THE_USER}


def _mixed(scene: Scene, added: np.ndarray, relative_db: float) -> Scene:
    """Add a sound at a level relative to the scene's speech."""
    wanted = users.level(scene.pcm) * 10 ** (relative_db / 20)
    return replace(scene, pcm=(scene.pcm + added * wanted / users.level(added)).clip(-1, 1).astype(np.float32))
