"""`python -m moshi.client` (PyPI moshi) with a sound card made of files.

python moshi_client.py ws://127.0.0.1:8998/bank http://127.0.0.1:7860
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import soundfile
from scene import QUESTION, RATE_HZ, is_sanni, report

TALK_SEC = 16.0
PAUSE_SEC = 6.0  # the greeting


def main(url: str, page: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        microphone, played = Path(folder) / "in.wav", Path(folder) / "out.wav"
        question = soundfile.read(QUESTION, dtype="float32")[0]
        soundfile.write(microphone, np.concatenate([np.zeros(int(PAUSE_SEC * RATE_HZ), np.float32), question]), RATE_HZ)
        card = str(Path(__file__).parent / "sound_card")
        environ = os.environ | {
            "PYTHONPATH": card, "CARD_IN": str(microphone), "CARD_OUT": str(played), "CARD_SEC": str(TALK_SEC + 5),
            "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        command = [sys.executable, f"{card}/run_moshi.py", "--url", url]
        run = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=TALK_SEC + 60, check=False)
        ended_at = time.monotonic()
        while running(page):
            time.sleep(0.05)
        free_sec = time.monotonic() - ended_at
        sound = soundfile.read(played)[0] if played.exists() else np.zeros(1)
    printed = re.sub(r"\x1b\[[0-9;]*m", "", run.stdout)
    loud_sec = float(
        (np.abs(sound.reshape(-1)[: len(sound) // 480 * 480].reshape(-1, 480)).max(axis=1) > 0.01).sum() * 0.02
    )
    report(printed=printed[-600:], errors=run.stderr[-600:], loud_sec=loud_sec, free_sec=round(free_sec, 2))
    assert is_sanni(" ".join(printed.split())), printed
    assert loud_sec > 1.5 and free_sec < 1.0


def running(page: str) -> bool:
    figures = urllib.request.urlopen(page + "/metrics", timeout=10).read().decode()
    return "personaplex_conversations 0.0" not in figures


if __name__ == "__main__":
    main(*sys.argv[1:])
