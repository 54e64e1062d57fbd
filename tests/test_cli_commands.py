"""The other commands, and slips in any of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from cli_outcome import refused
from conftest import GOLDEN_FOLDER

from personaplex.machine.inspect import GB, Machine

pytest_plugins = ["cli_fixtures"]

LAPTOP = Machine("Linux", "Python", "CPU", 4, 16 * GB, 12 * GB, 20.0, free_disk_bytes=100 * GB)
VOICE = str(GOLDEN_FOLDER / "voices" / "VOICE.wav")


def test_voices_and_personas(run):
    code, out, _ = run("voices")
    assert code == 0
    assert "NATF2 *" in out
    assert "nano-f *" in out
    assert [entry["name"] for entry in json.loads(run("voices", "--model", "nano", "--json")[1])] == [
        "nano-f",
        "nano-m",
        "nano-scot",
        "nano-old",
    ]
    refused(run("voices", "--model", "8b"), "7b and nano")
    assert "restaurant" in run("personas")[1]
    assert len(json.loads(run("personas", "--json")[1])) == 8
    assert "Sanni" in run("personas", "bank")[1]
    refused(run("personas", "bnak"), "did you mean bank")


def test_a_saved_voice_says_what_may_disappoint(run, caplog):
    pcm, rate_hz = soundfile.read(VOICE)
    soundfile.write("loud.wav", np.clip(pcm * 50, -1, 1), rate_hz)
    assert run("voice", "save", "loud", "loud.wav")[0] == 0
    assert "loud.wav is clipped" in caplog.text


def test_a_voice_is_saved_and_then_answers(run, reply, question):
    code, out, _ = run("voice", "save", "me", VOICE)
    assert code == 0
    assert "saved as me" in out
    assert "me" in [entry["name"] for entry in json.loads(run("voices", "--json")[1])]
    assert reply(question, voice="ME")[0] == 0
    refused_names = ("../me", "a/b", "")
    for name in refused_names:
        code, _, err = run("voice", "save", name, VOICE)
        assert (code, err.startswith("error: ")) == (2, True)
    assert sorted(path.name for path in Path("home").rglob("*.wav")) == ["me.wav"]


def test_doctor(run):
    code, out, _ = run("doctor")
    assert code == 0
    assert "auto takes" in out
    data = json.loads(run("doctor", "--json")[1])
    assert data["machine"]["cores"] >= 1
    assert data["choice"]["candidates"]


@pytest.mark.parametrize("words", [("reply", "x" * 5000), ("reply", "question.wav", "--voice", "x" * 5000)])
def test_a_path_too_long_is_one_line(run, question, words):
    refused(run(*words, "-o", "answer.wav", "--model", GOLDEN_FOLDER))


def test_a_packed_copy_never_leaves_its_folder(run, tmp_path):
    """A config may name files elsewhere: what is there was written over."""
    shutil.copytree(GOLDEN_FOLDER, tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    kept = tmp_path / "elsewhere.safetensors"
    shutil.move(tmp_path / "odd" / "model.safetensors", kept)
    before = kept.read_bytes()
    config.setdefault("files", {})["lm"] = str(kept)
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config))
    refused(run("quantize", tmp_path / "odd", "packed", "--dtype", "int8"), "files.lm", "in the model's folder")
    assert kept.read_bytes() == before


def test_quantize_and_use_it(run, reply, question):
    code, _, err = run("quantize", GOLDEN_FOLDER, "packed", "--dtype", "int8")
    assert code == 0, err
    code, out, err = run("reply", question, "-o", "answer.wav", "--model", "packed", "--prompt", "", "--voice", VOICE)
    assert code == 0, err
    assert "as int8" in out
    Path("answer.wav").unlink()
    refused(run("quantize", GOLDEN_FOLDER, "packed2", "--dtype", "int3"), "int3")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--seed", "1.5"), "invalid value for '--seed'"),
        (("--sede", "1"), "--sede is not known; did you mean --seed?"),
        (("--voice",), "option '--voice' requires an argument; see python -m personaplex"), (("b.wav",), "unexpected"),
    ],
)  # fmt: skip
def test_a_slip_is_one_line_as_every_other_error(reply, question, words, said):
    """Click's own errors came as a box of usage."""
    refused(reply(question, *words), said)


def test_a_slip_in_a_commands_name(run):
    refused(run("repyl"), "no such command 'repyl'. Did you mean 'reply'?")
    refused(run("reply", "question.wav"), "missing option '--output'")


def test_no_command_at_all_is_answered_with_help(run):
    for words in ((), ("voice",)):
        code, out, err = run(*words)
        assert code == 2 and "Usage" in out + err


def test_help_shows_examples(run):
    assert "examples/questions/bank.wav" in run("reply", "--help")[1]
    assert "voice" in run("--help")[1]


def test_a_typo_in_the_environment_fails(run, monkeypatch):
    monkeypatch.setenv("PERSONAPLEX_MODLE", "nano")
    refused(run("voices"), "did you mean PERSONAPLEX_MODEL")
