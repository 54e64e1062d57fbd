"""What is around a user: rumble, fans, streets, cafes; and the agent's own voice from a loudspeaker."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from training import users
from training.codec import disturb
from training.tts import SAMPLE_RATE_HZ

HISS, RUMBLE, FAN, STREET, CAFE = "hiss", "rumble", "fan", "street", "cafe"
# How often each is drawn for a user with noise, and by how much their speech is above it.
NOISES: dict[str, tuple[float, tuple[float, float]]] = {
    HISS: (0.4, users.NOISE_SNR_DB),
    RUMBLE: (0.2, (-3.0, 25.0)),
    FAN: (0.15, (3.0, 25.0)),
    STREET: (0.13, (3.0, 25.0)),
    CAFE: (0.12, (6.0, 25.0)),
}
BABBLERS = 5
_PASSING_SEC = (2.0, 7.0)  # of a car
_MURMUR_DB = -12.0  # of a cafe's dull noise to its voices
_CLATTER_DB = -14.0

# The agent's frame is heard two frames after the user's of the same number, at the soonest; then 120 to 400 ms.
ECHO_DELAY_SEC = (0.16, 0.56)
ECHO_DB = (-40.0, -15.0)
ECHO_NOISE_SHARE = 0.4  # of the echoes come with a noise of the room
ECHO_NOISE_DB = (-62.0, -34.0)  # of full scale


def babble(rng: random.Random) -> np.ndarray:
    """Several people talking at once, 20 s: [T] float32 with a root mean square of one."""
    length = int(20 * SAMPLE_RATE_HZ)
    talkers = [users.second_talker(rng, length) for _ in range(BABBLERS)]
    mixed = sum(talker / users.level(talker) * 10 ** (rng.uniform(-8.0, 0.0) / 20) for talker in talkers)
    return _of_one(np.asarray(mixed))


def noise(kind: str, length: int, draw: np.random.Generator, voices: Sequence[np.ndarray] = ()) -> np.ndarray:
    """[length] float32 of this kind, with a root mean square of one; `voices`: babbles for a cafe."""
    if kind == RUMBLE:
        return _of_one(disturb.rumble(length, draw))
    if kind == FAN:
        return _of_one(disturb.fan(length, draw))
    if kind == STREET:
        return _of_one(street(length, draw))
    if kind == CAFE:
        return _of_one(cafe(length, draw, voices))
    raise ValueError(f"{kind!r} is not a noise; allowed: {', '.join(NOISES)}")


def street(length: int, draw: np.random.Generator) -> np.ndarray:
    """Traffic far away all the time, and cars that pass."""
    far, time_sec = _of_one(disturb.falling(length, draw)), np.arange(length) / SAMPLE_RATE_HZ
    for _ in range(int(draw.integers(1, 4))):
        middle_sec, width_sec = draw.uniform(0.0, length / SAMPLE_RATE_HZ), draw.uniform(*_PASSING_SEC) / 4
        passing = np.exp(-0.5 * ((time_sec - middle_sec) / width_sec) ** 2)
        far = far + draw.uniform(1.0, 3.0) * passing * _of_one(disturb.falling(length, draw))
    return far


def cafe(length: int, draw: np.random.Generator, voices: Sequence[np.ndarray]) -> np.ndarray:
    """Voices, cups, and the dull noise of a room full of people."""
    sound = 10 ** (_MURMUR_DB / 20) * _of_one(disturb.falling(length, draw))
    sound = sound + 10 ** (_CLATTER_DB / 20) * _of_one(disturb.clatter(length, draw))
    if voices:
        talk = np.roll(voices[int(draw.integers(len(voices)))], int(draw.integers(length)))
        blurred, _ = disturb.room(np.resize(talk, length), draw)
        sound = sound + _of_one(blurred)
    return sound


def with_noise(pcm: np.ndarray, kind: str, snr_db: float, draw: np.random.Generator, voices: Sequence[np.ndarray]):
    """pcm [T] and a noise by so much below its speech: [T] float32."""
    around = noise(kind, len(pcm), draw, voices) * users.level(pcm) * 10 ** (-snr_db / 20)
    return (pcm + around).clip(-1.0, 1.0).astype(np.float32)


def random_noise(rng: random.Random) -> tuple[str, float]:
    """A kind of noise and how much speech is above it, in dB."""
    kind = rng.choices(list(NOISES), [share for share, _ in NOISES.values()])[0]
    return kind, rng.uniform(*NOISES[kind][1])


def echo(pcm: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """What a microphone beside the loudspeaker hears of the agent's speech: late, softer, through a room.

    pcm: [T] float32 -> the same.
    """
    heard, _ = disturb.room(pcm, draw)
    late = int(draw.uniform(*ECHO_DELAY_SEC) * SAMPLE_RATE_HZ)
    heard = np.pad(heard, (late, 0))[: len(pcm)] * 10 ** (draw.uniform(*ECHO_DB) / 20)
    if draw.random() < ECHO_NOISE_SHARE:
        kind = (RUMBLE, FAN, STREET)[int(draw.integers(3))]
        heard = heard + noise(kind, len(pcm), draw) * 10 ** (draw.uniform(*ECHO_NOISE_DB) / 20)
    return heard.clip(-1.0, 1.0).astype(np.float32)


def _of_one(sound: np.ndarray) -> np.ndarray:
    return (sound / max(1e-6, float(np.std(sound)))).astype(np.float32)
