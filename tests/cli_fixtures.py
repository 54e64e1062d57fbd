"""A command line in a folder of its own, on the golden model."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
from conftest import GOLDEN_FOLDER
from own_home import own_home

from personaplex.cli import main as cli

VOICE = str(GOLDEN_FOLDER / "voices" / "VOICE.wav")


@pytest.fixture
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERSONAPLEX_HOME", str(own_home(tmp_path)))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PERSONAPLEX_WINDOW", "published")  # the golden prompt is longer than its model's window
    for name in ("MODEL", "DEVICE", "DTYPE"):
        monkeypatch.delenv(f"PERSONAPLEX_{name}", raising=False)


@pytest.fixture
def run(capfd, in_a_folder_of_its_own):
    """run("reply", …) → exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.run(cli.app, [str(argument) for argument in arguments], "python -m personaplex")
        return (code, *capfd.readouterr())

    return run


@pytest.fixture
def question(tmp_path) -> Path:
    """Half a second of speech."""
    pcm, rate_hz = soundfile.read(GOLDEN_FOLDER / "user.wav", dtype="int16")
    soundfile.write(tmp_path / "question.wav", pcm[:12_345], rate_hz)
    return tmp_path / "question.wav"


@pytest.fixture
def reply(run, question):
    """A reply of the golden model; further options replace these."""

    def reply(asked: object = question, *options: object, voice: object = VOICE, model: object = GOLDEN_FOLDER):
        given = ["--model", model, "--device", "cpu", "--dtype", "float32"]
        if voice is not None:
            given += ["--voice", voice]
        if not {"--prompt", "--persona"} & set(map(str, options)):
            given += ["--prompt", "You are kind."]
        out = [] if {"-o", "--output"} & set(map(str, options)) else ["-o", "answer.wav"]
        return run("reply", asked, *out, *given, *options)

    return reply
