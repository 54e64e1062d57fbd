"""The command line answers token for token as the model's authors' code, as a user would run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import GOLDEN_FOLDER, GOLDEN_TEXT
from own_home import own_home

REPOSITORY = Path(__file__).parents[1]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "personaplex", *map(str, arguments)]


def environment(folder: Path) -> dict[str, str]:
    """One thread: so small a model is slower with more."""
    own = {"PYTHONPATH": str(REPOSITORY), "PERSONAPLEX_HOME": str(own_home(folder)), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own}


@pytest.mark.parametrize("voice", ["VOICE.wav", "VOICE.pt"])
def test_tokens_sound_and_words_of_a_reply(voice, expected, tmp_path):
    done = subprocess.run(
        command(
            "reply", GOLDEN_FOLDER / "user.wav", "-o", "answer.wav", "--model", GOLDEN_FOLDER,
            "--voice", GOLDEN_FOLDER / "voices" / voice, "--prompt", GOLDEN_TEXT, "--greedy", "--dtype", "float32",
            "--window", "published",
            "--device", "cpu", "--tokens", "tokens.npy", "--transcript", "words.json", "--stereo", "both.wav",
        ),
        cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "real-time factor" in done.stdout

    tokens = np.load(tmp_path / "tokens.npy")
    assert tokens.dtype == np.int64
    np.testing.assert_array_equal(tokens, expected[f"{voice[-3:].strip('.')}_voice.tokens"].numpy())

    question, _ = soundfile.read(GOLDEN_FOLDER / "user.wav", dtype="float32")
    answer, rate_hz = soundfile.read(tmp_path / "answer.wav", dtype="float32")
    assert (rate_hz, answer.shape) == (24_000, question.shape)
    np.testing.assert_allclose(answer, expected["wav_voice.pcm"].numpy()[: len(answer)], atol=1e-4)
    both, _ = soundfile.read(tmp_path / "both.wav", dtype="float32")
    np.testing.assert_array_equal(both, np.stack([answer, question], axis=1))

    words = json.loads((tmp_path / "words.json").read_text())
    assert words["text"] == " ".join(chunk["text"] for chunk in words["chunks"])
    times = [time for chunk in words["chunks"] for time in chunk["timestamp"]]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] <= 60 * 0.08


# Started by a program in the background, the tests may have inherited that Ctrl-C is ignored.
TELL_OF_FRAME_10 = """
import itertools, pathlib, signal, sys
from personaplex.cli.main import main
from personaplex.session.session import Conversation

calls, step = itertools.count(1), Conversation.step

def telling_step(self, pcm):
    if next(calls) == 10:
        pathlib.Path("frame-10").touch()
    return step(self, pcm)

Conversation.step = telling_step
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""


def test_ctrl_c_keeps_what_was_said_so_far(tmp_path):
    soundfile.write(tmp_path / "long.flac", np.zeros(20 * 60 * 24_000, np.int16), 24_000)
    process = subprocess.Popen(
        [
            sys.executable, "-c", TELL_OF_FRAME_10, "reply", "long.flac", "-o", "answer.wav",
            "--model", str(GOLDEN_FOLDER), "--prompt", "", "--greedy", "--tokens", "tokens.npy",
            "--window", "published",
        ],
        cwd=tmp_path, env=environment(tmp_path), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (tmp_path / "frame-10").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "so far is in answer.wav" in errors
    frames = np.load(tmp_path / "tokens.npy").shape[1]
    assert 9 <= frames < 15_000
    assert soundfile.info(tmp_path / "answer.wav").frames == frames * 1920
