"""`streamdouble`, a simulator of Twilio's Media Streams, calls `/twilio/media`.

python phone.py ws://127.0.0.1:7860/twilio/media
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr
from scene import QUESTION, ROLE, report

PAUSE_SEC = 6.0
RATE_HZ = 8000


def main(url: str, keep: str = "") -> None:
    with tempfile.TemporaryDirectory() as folder:
        spoken, reply = Path(folder) / "question.wav", Path(keep or folder) / "reply.wav"
        question, rate_hz = soundfile.read(QUESTION, dtype="float32")
        silence = np.zeros(int(PAUSE_SEC * RATE_HZ), np.float32)
        soundfile.write(spoken, np.concatenate([silence, soxr.resample(question, rate_hz, RATE_HZ), silence]), RATE_HZ)
        command = [str(Path(sys.executable).parent / "streamdouble"), "call", url, "--audio", str(spoken)]
        command += ["--out", str(reply), "--param", f"prompt={ROLE}", "--param", "seed=1", "--param", "voice=nano-f"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        sound, rate_hz = (
            soundfile.read(reply, dtype="float32") if reply.exists() else (np.zeros(1, np.float32), RATE_HZ)
        )
    loud = np.flatnonzero(np.abs(sound) > 0.01)
    first_sec = float(loud[0]) / rate_hz if len(loud) else None
    report(printed=run.stdout[-1500:], errors=run.stderr[-500:], sound_sec=len(sound) / rate_hz, first_sec=first_sec)
    assert run.returncode == 0 and len(sound) / rate_hz > 4


if __name__ == "__main__":
    main(*sys.argv[1:])
