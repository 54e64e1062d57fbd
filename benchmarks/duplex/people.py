"""Scenes of people's recordings: real voices and wordings in the place of synthesised ones.

A folder as ``training.people`` reads it; only what training refuses (``training.kept_out``) is taken.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
import soxr

from benchmarks.duplex.scenes import ANSWER_SEC, LEVEL_DBFS, START_SEC, Scene
from benchmarks.duplex.speech_activity import SAMPLE_RATE_HZ
from personaplex.errors import InputError
from training import judge_talks, people, users
from training.tts import SAMPLE_RATE_HZ as RECORDED_HZ

CONDITION = "people"
TURN_TASK, PAUSE_TASK = "people_turn_taking", "people_pause_handling"
SETS = ("cafe", "arctic", "librispeech")
LENGTH_SEC = (1.5, 10.0)


def people_scenes(folder: Path, count: int, seed: int) -> Iterator[tuple[str, Scene]]:
    """``count`` turns to take, of the sets in turn, and ``count`` orders with a pause, fewer where there are fewer.

    Raises InputError where the folder has nothing that is kept for tests.
    """
    by_set = [_shuffled(people.recordings(folder, kept=True, sets=(name,)), seed) for name in SETS]
    if not any(by_set):
        raise InputError(f"{folder} has no recordings of {', '.join(SETS)} that are kept for tests")
    in_turn = (recording for recording in chain.from_iterable(zip_longest(*by_set)) if recording is not None)
    yield from _some(((TURN_TASK, scene) for scene in map(_turn, in_turn) if scene is not None), count)
    rng = random.Random(seed)
    paused = (_paused(recording, rng) for recording in by_set[0])
    yield from _some(((PAUSE_TASK, scene) for scene in paused if scene is not None), count)


def _some(scenes: Iterator[tuple[str, Scene]], count: int) -> Iterator[tuple[str, Scene]]:
    return (scene for scene, _ in zip(scenes, range(count), strict=False))


def _shuffled(found: list[people.Recording], seed: int) -> list[people.Recording]:
    return random.Random(seed).sample(found, len(found))


def _sound(recording: people.Recording) -> np.ndarray | None:
    """[N] float32 at the models' rate, the speech alone; None where it is too short or too long."""
    pcm = judge_talks.tight(recording.pcm())
    return pcm if LENGTH_SEC[0] <= len(pcm) / RECORDED_HZ <= LENGTH_SEC[1] else None


def _placed(pcm: np.ndarray) -> np.ndarray:
    """[N] float32 at the bench's rate and level, after a moment of silence."""
    pcm = soxr.resample(pcm, RECORDED_HZ, SAMPLE_RATE_HZ)
    pcm = (pcm * 10 ** (LEVEL_DBFS / 20) / users.level(pcm)).clip(-1, 1)
    return np.concatenate([np.zeros(round(START_SEC[0] * SAMPLE_RATE_HZ)), pcm]).astype(np.float32)


def _turn(recording: people.Recording) -> Scene | None:
    if (pcm := _sound(recording)) is None:
        return None
    heard = _placed(pcm)
    silence = np.zeros(round(ANSWER_SEC * SAMPLE_RATE_HZ), np.float32)
    return Scene(np.concatenate([heard, silence]), (), turn_end_sec=len(heard) / SAMPLE_RATE_HZ)


def _paused(recording: people.Recording, rng: random.Random) -> Scene | None:
    """The file ends with the speech, as the published ones do."""
    if (pcm := _sound(recording)) is None:
        return None
    heard, start_sec, end_sec = judge_talks.with_pause(pcm, rng)
    return Scene(_placed(heard), (), pauses=((START_SEC[0] + start_sec, START_SEC[0] + end_sec),))
