"""Folders whose names the locale's encoding cannot write: no library may be handed such a path to open."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import GOLDEN_FOLDER

REPOSITORY = Path(__file__).parents[1]


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copy2(source, target)


@pytest.mark.skipif(sys.platform == "win32", reason="the C locale is a thing of POSIX")
def test_a_reply_from_a_folder_with_umlauts_under_the_c_locale(tmp_path):
    """Program, model, voice, recordings and the compiled code all lie in such folders."""
    place = tmp_path / "Grüße & Söhne" / "persona plex ü"
    place.mkdir(parents=True)
    for name in ("personaplex", "voices", "examples"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, place / name, copy_function=link_or_copy, ignore=ignored)
    pcm, rate_hz = soundfile.read(GOLDEN_FOLDER / "user.wav", dtype="float32")
    soundfile.write(place / "frage ü.wav", pcm[: rate_hz // 2], rate_hz)
    shutil.copyfile(GOLDEN_FOLDER / "user.wav", place / "stimme ü.wav")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    environment |= {
        "LC_ALL": "C", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1", "PERSONAPLEX_HOME": str(place / "hübsch"),
    }  # fmt: skip
    words = ["reply", "frage ü.wav", "-o", "antwort ü.wav", "--voice", "stimme ü.wav", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "personaplex", *words], cwd=place, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    assert b"PyTorch's operators" not in done.stderr, "the compiled code could not be used"
    answer, _ = soundfile.read(place / "antwort ü.wav", dtype="float32")
    assert len(answer) and np.isfinite(answer).all()
