"""``reply``: what it writes, and the one line it says about every input that cannot be used."""

from __future__ import annotations

import json
import pickle
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from cli_outcome import refused
from conftest import GOLDEN_FOLDER

from personaplex.errors import OutputError
from personaplex.machine.inspect import GB, Machine
from personaplex.session.session import Conversation
from personaplex.weights.folder import ModelFiles
from personaplex.weights.hub import ModelSource

pytest_plugins = ["cli_fixtures"]

LAPTOP = Machine("Linux", "Python", "CPU", 4, 16 * GB, 12 * GB, 20.0, free_disk_bytes=100 * GB)
VOICE = str(GOLDEN_FOLDER / "voices" / "VOICE.wav")


# --- what it writes


def test_an_answer_as_long_as_the_question(reply):
    code, out, _ = reply()
    assert code == 0
    assert soundfile.info("answer.wav").frames == 12_345
    assert "seed" in out
    assert "float32 on cpu" in out


def test_a_tail_lets_it_finish(reply, question):
    assert reply(question, "--tail", 1.0, "--stereo", "both.wav", "--tokens", "t.npy")[0] == 0
    assert soundfile.info("answer.wav").frames == 12_345 + 24_000
    both, _ = soundfile.read("both.wav", dtype="int16")
    asked, _ = soundfile.read("question.wav", dtype="int16")
    np.testing.assert_array_equal(both[: len(asked), 1], asked)
    assert not both[len(asked) :, 1].any()
    assert np.load("t.npy").shape == (17, 19)


def test_a_seed_gives_the_same_answer_again(reply, question):
    seen = []
    for seed in (1, 1, 2):
        assert reply(question, "--seed", seed, "--tokens", "t.npy")[0] == 0
        seen.append(np.load("t.npy"))
    np.testing.assert_array_equal(seen[0], seen[1])
    assert (seen[0] != seen[2]).any()


@pytest.mark.parametrize("name", ["words.json", "words.vtt", "words.txt"])
def test_transcripts_by_their_ending(reply, question, name):
    assert reply(question, "--transcript", name, "--tail", 2, "--seed", 3)[0] == 0
    text = Path(name).read_text()
    if name.endswith("json"):
        assert set(json.loads(text)) == {"text", "chunks"}
    assert text.startswith("WEBVTT") == name.endswith("vtt")


def test_a_prompted_persona_is_kept_on_disk_if_asked(reply, question):
    answers = []
    for _ in range(2):
        assert reply(question, "--greedy", "--snapshots", "kept", "--tokens", "t.npy")[0] == 0
        answers.append(np.load("t.npy"))
    np.testing.assert_array_equal(*answers)
    assert list(Path("kept").iterdir())


def test_a_persona_of_the_catalogue_may_need_truncating_for_a_small_vocabulary(reply, question):
    refused(reply(question, "--persona", "bank"), "tokens", "at most 200")
    assert reply(question, "--persona", "bank", "--truncate")[0] == 0


def test_an_empty_prompt_is_no_text_segment(reply, question):
    assert reply(question, "--prompt", "")[0] == 0


def test_a_model_without_a_voice_of_its_own_takes_none(reply, question):
    assert reply(question, voice=None)[0] == 0


# --- questions


def write(name: str, samples: np.ndarray, rate_hz: int = 24_000, **options: str) -> str:
    soundfile.write(name, samples, rate_hz, **options)
    return name


def test_clipped_and_telephone_questions_are_taken_with_a_note(reply):
    loud = np.clip(3 * np.sin(np.arange(4000)), -1, 1)
    code, _, err = reply(write("loud.wav", loud, 8_000))
    assert code == 0
    assert "note: loud.wav is clipped" in err
    assert "telephone" in err


def test_questions_that_are_none(reply, tmp_path):
    refused(reply("missing.wav"), "missing.wav", "does not exist")
    refused(reply(tmp_path), "folder")
    Path("text.wav").write_text("no sound")
    refused(reply("text.wav"), "not a sound file")
    Path("empty.wav").touch()
    refused(reply("empty.wav"), "empty")
    refused(reply(write("none.wav", np.zeros(0))), "no samples")
    refused(reply(write("nan.wav", np.full(5000, np.nan), subtype="FLOAT")), "NaN")
    refused(reply(write("long.flac", np.zeros(36_000_000, np.int16), 1000)), "10.0 h long", "at most 60 min")


# --- voices, prompts, personas, models


def test_voices_that_cannot_be_used(reply, question):
    rng = np.random.default_rng(0)
    refused(reply(voice=write("short.wav", rng.normal(size=4800) * 0.1)), "0.20 s long", "1 to 60 s")
    refused(reply(voice=write("silent.wav", np.zeros(48_000))), "silent")
    refused(reply(voice="../VOICE"), "../VOICE")
    refused(reply(voice="VOICEX"), "no voice 'VOICEX'")
    refused(reply(voice="NATF2"), "belongs to the 7b")


def test_damaged_and_malicious_voice_files(reply, monkeypatch):
    Path("damaged.pt").write_bytes((GOLDEN_FOLDER / "voices" / "VOICE.pt").read_bytes()[:1000])
    refused(reply(voice="damaged.pt"), "damaged.pt")
    Path("evil.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    refused(reply(voice="evil.pt"), "evil.pt")
    assert not Path("owned").exists()
    with monkeypatch.context() as patch:  # a 7B takes minutes to load: a file is looked at before
        patch.setattr("personaplex.cli.commands.load_model", None)
        refused(reply(voice="damaged.pt"), "damaged.pt is not a voice file")
        torch.save({"embeddings": torch.zeros(5, 1, 1, 7), "cache": torch.zeros(1, 17, 4).long()}, "other.pt")
        refused(reply(voice="other.pt"), "other.pt is not a voice for golden-1")
    Path("noise.safetensors").write_bytes(b"\xff" * 100)
    refused(reply(voice="noise.safetensors"), "noise.safetensors")


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("owned"),)


def test_prompts_that_cannot_be_used(reply, question):
    refused(reply(question, "--prompt", "word " * 5000), "tokens", "at most 200")
    refused(reply(question, "--prompt", "ring\a"), "U+0007")
    refused(reply(question, "--prompt", "a", "--persona", "bank"), "choose one")
    refused(reply(question, "--persona", "bnak"), "did you mean bank")


def test_options_out_of_range(reply, question):
    refused(reply(question, "--temperature-audio", 0), "temperature_audio")
    refused(reply(question, "--top-k-text", 0), "top_k_text")
    refused(reply(question, "--seed", -1), "seed")
    refused(reply(question, "--greedy", "--seed", 1), "choose one")
    refused(reply(question, "--tail", -1), "--tail")
    refused(reply(question, "--loudspeaker", question), "--loudspeaker was given without --clean")
    refused(reply(question, "--context", 1), "--context")
    refused(reply(question, "--dtype", "int3"), "int3")
    refused(reply(question, "--device", "tpu"), "tpu")


def test_options_are_looked_at_before_the_model_is_fetched(reply, question, monkeypatch):
    monkeypatch.setattr("personaplex.cli.commands.resolve_model", None)  # reaching it would fail differently
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(reply(question, "--dtype", "fp16"), "no number format 'fp16'")
    refused(reply(question, "--device", "cuda"), "the device cuda was asked for")


def test_the_context_is_looked_at_before_the_weights_are_loaded(reply, question, monkeypatch):
    monkeypatch.setattr("personaplex.cli.commands.load_model", None)
    refused(reply(question, "--context", 5000), "context is 5000 frames", "4 to 40")


def test_a_context_shorter_than_the_prompt_is_refused_before_the_weights_are_loaded(reply, question, monkeypatch):
    """The persona was dropped without a word."""
    with monkeypatch.context() as patch:
        patch.setattr("personaplex.cli.commands.load_model", None)
        refused(
            reply(question, "--context", 20, "--prompt", ""), "more than a context of 20", "the least that works is"
        )
        published = GOLDEN_FOLDER / "voices" / "VOICE.pt"
        refused(reply(question, "--context", 12, "--prompt", "", voice=published), "the least that works is")
    code, _, err = reply(question, "--context", 20, "--prompt", "", "--tail", "2", voice=None)
    assert code == 0 and "the model begins to forget its voice and role" in err


def test_a_prompt_too_long_to_be_kept_is_refused_before_the_weights_are_loaded(reply, question, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("personaplex.cli.commands.load_model", None)
        refused(reply(question, "--window", "persona"), "too many to be kept in a context of 40", "published window")
        refused(reply(question, "--window", "endless"), "'endless'", "persona and published")
    code, _, err = reply(question, "--window", "persona", "--prompt", "", "--tail", "2", voice=None)
    assert code == 0 and "forget" not in err


def test_a_model_is_found_and_opened_once(reply, monkeypatch):
    opened, original = [], ModelFiles.open.__func__
    monkeypatch.setattr(
        ModelFiles, "open", classmethod(lambda cls, folder: opened.append(folder) or original(cls, folder))
    )
    assert reply()[0] == 0
    assert opened == [GOLDEN_FOLDER]


@pytest.fixture
def chosen(monkeypatch):
    """What the model's name was when it was looked for; the golden model is found whatever it was."""
    asked = []

    def resolve(*given):
        asked.append(given)
        return ModelSource(GOLDEN_FOLDER)

    monkeypatch.setattr("personaplex.cli.commands.resolve_model", resolve)
    monkeypatch.setattr("personaplex.machine.choose.inspect_here", lambda device: LAPTOP)
    return asked


def test_auto_is_the_model_that_the_page_would_take(reply, run, question, chosen, monkeypatch):
    code, _, err = reply(model="auto")
    assert code == 0 and chosen == [("nano", None)]
    assert "note: auto takes nano as float32 on cpu, at least" in err and "it ships with the program" in err
    monkeypatch.setenv("PERSONAPLEX_MODEL", "auto")
    code, out, _ = run("reply", question, "-o", "answer.wav", "--prompt", "", "--voice", VOICE)
    assert code == 0 and chosen[1:] == [("nano", None)]
    assert "as int8 on cpu" in out


def test_nano_has_no_revisions(reply, question):
    refused(reply(question, "--revision", "v2", model="nano"), "nano comes with the program and has no revision v2")


def test_models_that_are_none(reply, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(reply(model="nanoo"), "nanoo")
    refused(reply(model=tmp_path / "nowhere"), "nowhere")
    (tmp_path / "empty").mkdir()
    refused(reply(model=tmp_path / "empty"), "empty")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_spm_32k_3.model", "config.json"])
@pytest.mark.parametrize("damage", ["truncated", "noise"])
def test_damaged_checkpoints(reply, tmp_path, name, damage):
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN_FOLDER, folder)
    for path in folder.rglob("*"):
        path.chmod(0o755)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2] if damage == "truncated" else b"\xff\x00" * 500)
    refused(reply(model=folder), str(folder))


def test_a_folder_without_its_config_is_told_so(reply, tmp_path):
    """Taken for the 7B, it was asked for the 7B's voices."""
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN_FOLDER, folder, ignore=shutil.ignore_patterns("config.json"))
    for voice in (None, VOICE):
        refused(reply(model=folder, voice=voice), "has no config.json, and its weights are not the published 7B's")


def test_a_busy_machine_is_said_before_the_wait(reply, monkeypatch):
    monkeypatch.setattr("personaplex.cli.commands.OtherPrograms.busy_cores", lambda self: 1.9)
    monkeypatch.setattr("personaplex.cli.commands.usable_cores", lambda: 2)
    code, _, err = reply()
    assert code == 0 and "note: other programs keep 1.9 of 2 cores busy: everything takes longer" in err


def test_a_malicious_archive_of_voices_leaves_its_folder_alone(reply, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN_FOLDER, folder, ignore=shutil.ignore_patterns("voices"))
    folder.chmod(0o755)
    Path("payload").write_text("x")
    with tarfile.open(folder / "voices.tgz", "w:gz") as archive:
        archive.add("payload", arcname="../../escaped.pt")
        archive.add("payload", arcname="voices/../../../escaped.pt")
    refused(reply(voice="escaped", model=folder), "escaped")
    assert not list(tmp_path.parent.rglob("escaped.pt"))


# --- outputs


def test_outputs_are_checked_before_the_work(reply, question, tmp_path, monkeypatch):
    monkeypatch.setattr("personaplex.cli.commands.load_model", None)  # reaching it would fail differently
    monkeypatch.setattr("personaplex.cli.commands.read_recording", None)
    refused(reply(question, "-o", "nowhere/out.wav"), "no folder")
    refused(reply(question, "-o", tmp_path), ".wav")
    refused(reply(question, "-o", "out.mp3"), "must end in .wav")
    refused(reply(question, "-o", question), "is the input")
    refused(reply(question, "--stereo", "answer.wav"), "is the answer too")
    refused(reply(question, "--tokens", "tokens.json"), "must end in .npy")
    refused(reply(question, "--transcript", "words.doc"), ".json or .txt or .vtt")


def test_the_snapshots_folder_is_checked_before_the_work(reply, question, monkeypatch):
    monkeypatch.setattr("personaplex.cli.commands.read_recording", None)
    Path("taken").touch()
    refused(reply(question, "--snapshots", "taken"), "taken is a file")
    refused(reply(question, "--snapshots", "taken/below"), "taken is a file")


def test_a_model_that_loses_its_numbers_writes_no_answer(reply, monkeypatch):
    original = Conversation.step
    monkeypatch.setattr(Conversation, "step", lambda self, pcm: replace(original(self, pcm), pcm=pcm * np.nan))
    refused(reply(), "stopped being finite after 0.0 s", "--dtype float32")


def test_a_disk_that_is_full_at_the_end_costs_one_file(reply, question, monkeypatch):
    def full(path, *_):
        raise OutputError(f"{path} cannot be written: No space left on device")

    monkeypatch.setattr("personaplex.session.reply.write_wav", full)
    code, _, err = reply(question, "--transcript", "words.json", "--tokens", "t.npy")
    assert code == 2 and "answer.wav cannot be written" in err
    assert Path("words.json").exists() and Path("t.npy").exists()


def test_ctrl_c_saves_what_was_said_so_far(reply, question, monkeypatch):
    steps = iter(range(100))
    original = Conversation.step

    def interrupted(self, pcm):
        if next(steps) == 4:
            raise KeyboardInterrupt
        return original(self, pcm)

    monkeypatch.setattr(Conversation, "step", interrupted)
    code, out, err = reply(question, "--tail", 5, "--transcript", "words.json", "--tokens", "t.npy")
    assert code == 130
    assert "stopped after 0.3 s; what was said so far is in answer.wav" in err
    assert soundfile.info("answer.wav").frames == 4 * 1920
    assert np.load("t.npy").shape == (17, 4)
    assert Path("words.json").exists()
    assert "files: answer.wav" in out


def test_ctrl_c_before_the_first_word_writes_nothing(reply, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Conversation, "step", stop)
    assert reply()[0] == 130
    assert not Path("answer.wav").exists()
    monkeypatch.setattr("personaplex.cli.commands.load_model", stop)
    code, _, err = reply()
    assert code == 130
    assert err == "stopped; nothing was written\n"


def test_too_little_memory_is_a_line_too(reply, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 9 bytes")

    monkeypatch.setattr("personaplex.cli.commands.load_model", full)
    refused(reply(), "memory", "--dtype int4")
